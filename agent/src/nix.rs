//! The Nix store of this host, by the commands that every host with Nix has.

use std::fs;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use blixard_core::types::StorePath;
use tokio::process::Command;

/// Where roots are that the collector honours, unless the agent is told otherwise.
pub const ROOTS: &str = "/nix/var/nix/gcroots/blixard";

/// How much of a command's complaints goes into an error, in characters.
const MAX_COMPLAINT: usize = 1000;

/// What the cluster needs of a store: that a path is there and stays.
///
/// A root's name is an instance's; it keeps one path and all that this refers to.
pub trait NixStore: Send + Sync + 'static {
    /// Have a path valid in the store, from a substituter if need be, and kept by this root from the same moment.
    ///
    /// # Errors
    /// [`NixError::Start`], [`NixError::Realise`], [`NixError::TimedOut`]; a root of this name is then as it was.
    fn realise(&self, path: &StorePath, root: &str) -> impl Future<Output = Result<(), NixError>> + Send;

    /// Let a root's path go; that there is no such root is fine.
    ///
    /// # Errors
    /// [`NixError::RemoveRoot`].
    fn remove_root(&self, root: &str) -> impl Future<Output = Result<(), NixError>> + Send;

    /// The names of all roots.
    ///
    /// # Errors
    /// [`NixError::ListRoots`].
    fn roots(&self) -> impl Future<Output = Result<Vec<String>, NixError>> + Send;
}

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NixError {
    #[error("cannot run nix-store: is Nix in the agent's PATH?")]
    Start { source: io::Error },
    #[error(
        "cannot realise {path}: {complaint}\n  \
         try: nix copy --to ssh://THIS-HOST {path}, or add a substituter that has it to this host"
    )]
    Realise { path: StorePath, complaint: String },
    #[error("cannot realise {path}: not done within {seconds} s; is its substituter reachable?")]
    TimedOut { path: StorePath, seconds: u64 },
    #[error("cannot make the directory of roots {}: may this process write there?", path.display())]
    MakeRoots { path: PathBuf, source: io::Error },
    #[error("cannot remove the root {}", path.display())]
    RemoveRoot { path: PathBuf, source: io::Error },
    #[error("cannot list the roots in {}", path.display())]
    ListRoots { path: PathBuf, source: io::Error },
}

/// The store behind `nix-store`.
#[derive(Clone, Debug)]
pub struct NixCommand {
    program: PathBuf,
    roots: PathBuf,
    max_wait: Duration,
}

impl NixCommand {
    /// `roots` is a directory below `/nix/var/nix/gcroots`, made when it is needed; `max_wait` bounds one download.
    pub fn new(roots: impl Into<PathBuf>, max_wait: Duration) -> Self {
        Self { program: PathBuf::from("nix-store"), roots: roots.into(), max_wait }
    }
}

impl NixStore for NixCommand {
    async fn realise(&self, path: &StorePath, root: &str) -> Result<(), NixError> {
        fs::create_dir_all(&self.roots).map_err(|source| NixError::MakeRoots { path: self.roots.clone(), source })?;
        let mut command = Command::new(&self.program);
        command.args(["--realise", path.as_str(), "--add-root"]).arg(self.roots.join(root));
        command.stdin(Stdio::null()).kill_on_drop(true);
        // Nothing of root's own profile matters here, and what it complains of ends up in a status line.
        command.env("HOME", "/nonexistent").env("NO_COLOR", "1").env("TERM", "dumb");
        let output = match tokio::time::timeout(self.max_wait, command.output()).await {
            Ok(output) => output.map_err(|source| NixError::Start { source })?,
            Err(_) => return Err(NixError::TimedOut { path: path.clone(), seconds: self.max_wait.as_secs() }),
        };
        if output.status.success() {
            return Ok(());
        }
        Err(NixError::Realise { path: path.clone(), complaint: complaint(&output) })
    }

    async fn remove_root(&self, root: &str) -> Result<(), NixError> {
        let path = self.roots.join(root);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(NixError::RemoveRoot { path, source }),
            _ => Ok(()),
        }
    }

    async fn roots(&self) -> Result<Vec<String>, NixError> {
        list(&self.roots).map_err(|source| NixError::ListRoots { path: self.roots.clone(), source })
    }
}

fn list(dir: &Path) -> io::Result<Vec<String>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The end of what a command said on stderr, or how it ended if it said nothing.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let text = lines.join("; ");
    if text.is_empty() {
        return output.status.to_string();
    }
    let start = text.char_indices().rev().nth(MAX_COMPLAINT - 1).map_or(0, |(at, _)| at);
    text[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runner() -> StorePath {
        "/nix/store/0c6kzph7l0dcbfmjap64f0czdafn3b7x-runner".parse().unwrap()
    }

    /// A store whose `nix-store` is this script.
    fn store(dir: &Path, script: &str) -> NixCommand {
        let program = dir.join("nix-store");
        // Not by this process: while it writes, a test beside this one may start a program, which has the file open for
        // writing too until it runs, and what is open for writing can't be run ("Text file busy").
        let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$2" && chmod 755 "$2""#;
        let written = std::process::Command::new("sh").args(["-c", write, "sh", script]).arg(&program).status();
        assert!(written.unwrap().success());
        NixCommand { program, roots: dir.join("roots"), max_wait: Duration::from_secs(60) }
    }

    #[tokio::test]
    async fn a_realised_path_has_a_root_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), r#"[ "$1 $3" = "--realise --add-root" ] && ln -s "$2" "$4""#);
        assert_eq!(store.roots().await.unwrap(), [""; 0]);
        store.realise(&runner(), "web-0").await.unwrap();
        assert_eq!(store.roots().await.unwrap(), ["web-0"]);
        store.remove_root("web-0").await.unwrap();
        store.remove_root("web-0").await.unwrap();
        assert_eq!(store.roots().await.unwrap(), [""; 0]);
    }

    #[tokio::test]
    async fn a_path_that_cannot_be_had_is_named_with_the_end_of_the_complaint() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), "seq 10000 >&2; echo the last word >&2; exit 1");
        let error = store.realise(&runner(), "web-0").await.unwrap_err().to_string();
        assert!(error.contains(runner().as_str()) && error.contains("the last word"), "{error}");
        assert!(error.len() < 2 * MAX_COMPLAINT, "{}", error.len());
    }

    #[tokio::test]
    async fn a_download_that_never_ends_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = store(dir.path(), "exec tail -f /dev/null");
        store.max_wait = Duration::from_millis(10);
        let error = store.realise(&runner(), "web-0").await.unwrap_err();
        assert!(matches!(error, NixError::TimedOut { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_host_without_nix_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = NixCommand::new(dir.path().join("roots"), Duration::from_secs(60));
        store.program = dir.path().join("nowhere");
        let error = store.realise(&runner(), "web-0").await.unwrap_err();
        assert!(error.to_string().contains("PATH"), "{error}");
    }
}
