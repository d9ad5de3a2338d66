//! The manifest that this host carries, offered to the cluster when the agent starts and when it is reloaded.

use std::path::{Path, PathBuf};

use blixard_core::command::{Command, ManifestReply, Origin, Reply};
use blixard_core::manifest::{Manifest, ManifestError};

use crate::config::ManifestFile;
use crate::node::Handle;

/// Why a host's manifest could not be offered.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    #[error("cannot read the manifest {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot use the manifest {path}")]
    Parse { path: PathBuf, source: ManifestError },
    #[error("cannot note in {path} which manifest this boot has offered")]
    Mark { path: PathBuf, source: std::io::Error },
}

/// On what occasion the manifest is offered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Occasion {
    /// The agent has started: at boot, after a crash, or because a switch restarted it.
    Start,
    /// The agent was told to reload.
    Reload,
}

/// Offers it until the cluster has answered. A host whose manifest is wrong goes on without: the error is logged.
pub async fn offer(handle: &Handle, file: &ManifestFile, run_dir: &Path, occasion: Occasion) {
    let marker = run_dir.join("offered");
    let (manifest, activated) = match read(file, &marker, occasion) {
        Ok(read) => read,
        Err(error) => return tracing::error!(error = crate::error_chain(&error), "the manifest is not offered"),
    };
    let hash = manifest.hash();
    let from = Origin::Host { node: handle.node(), activated, authority: file.authority };
    let command = Command::OfferManifest { manifest, from };
    loop {
        match handle.propose(command.clone()).await.map(|answer| answer.reply) {
            Ok(Reply::Manifest { result: ManifestReply::Held, .. }) => {
                tracing::warn!(manifest = hash.short(), "an earlier manifest is held: see `blixard manifest ls`");
                break;
            }
            Ok(Reply::Refused(why)) => {
                tracing::error!(manifest = hash.short(), error = why, "the manifest was refused");
                break;
            }
            Ok(reply) => {
                tracing::info!(manifest = hash.short(), ?reply, "the manifest was offered");
                break;
            }
            Err(error) => {
                tracing::warn!(error = crate::error_chain(&error), "the manifest has not been offered yet");
                tokio::time::sleep(super::PAUSE).await;
            }
        }
    }
    if let Err(source) = std::fs::write(&marker, hash.to_string()) {
        let error = OfferError::Mark { path: marker, source };
        tracing::warn!(error = crate::error_chain(&error), "the next start looks like a boot");
    }
}

/// The manifest, and whether this host's system was just activated with it.
///
/// The marker is gone after a reboot. It holds what this boot offered last, so a start with another manifest than that
/// is a switch that restarted the agent; one with the same manifest is only a restart.
fn read(file: &ManifestFile, marker: &Path, occasion: Occasion) -> Result<(Manifest, bool), OfferError> {
    let path = || file.path.clone();
    let json = std::fs::read(&file.path).map_err(|source| OfferError::Read { path: path(), source })?;
    let manifest = Manifest::parse(&json).map_err(|source| OfferError::Parse { path: path(), source })?;
    let offered = std::fs::read_to_string(marker).ok();
    let another = offered.is_some_and(|offered| offered.trim() != manifest.hash().to_string());
    Ok((manifest, occasion == Occasion::Reload || another))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reload_or_another_manifest_since_boot_is_an_activation() {
        let dir = tempfile::tempdir().unwrap();
        let file = ManifestFile { path: dir.path().join("manifest.json"), authority: false };
        let marker = dir.path().join("offered");
        std::fs::write(&file.path, r#"{ "version": 1, "vms": {} }"#).unwrap();
        let activated = |occasion| read(&file, &marker, occasion).unwrap().1;
        assert!(!activated(Occasion::Start), "a boot");
        assert!(activated(Occasion::Reload));
        std::fs::write(&marker, read(&file, &marker, Occasion::Start).unwrap().0.hash().to_string()).unwrap();
        assert!(!activated(Occasion::Start), "a crash and restart");
        std::fs::write(&marker, "another").unwrap();
        assert!(activated(Occasion::Start), "a switch that restarted the agent");
    }

    #[test]
    fn a_manifest_that_cannot_be_read_is_named() {
        let file = ManifestFile { path: "/nowhere/manifest.json".into(), authority: false };
        let error = read(&file, Path::new("/nowhere/offered"), Occasion::Start).unwrap_err();
        assert!(error.to_string().contains("/nowhere/manifest.json"));
    }
}
