//! The Nix store of this host, by the commands that every host with Nix has.

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::{MetadataExt as _, symlink};
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
    /// Have a path valid in the store, from a substituter if need be. If a root has been added for it before, it stays, also if
    /// a collector is at work that had read the roots by then.
    ///
    /// # Errors
    /// [`NixError::Start`], [`NixError::Realise`], [`NixError::TimedOut`].
    fn realise(&self, path: &StorePath) -> impl Future<Output = Result<(), NixError>> + Send;

    /// Have a root keep a path from the next collection on, in the place of what it kept before.
    ///
    /// # Errors
    /// [`NixError::AddRoot`].
    fn add_root(&self, root: &str, path: &StorePath) -> impl Future<Output = Result<(), NixError>> + Send;

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
    #[error("cannot add the root {}: may this process write there?", path.display())]
    AddRoot { path: PathBuf, source: io::Error },
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
    async fn realise(&self, path: &StorePath) -> Result<(), NixError> {
        let mut command = Command::new(&self.program);
        command.args(["--realise", path.as_str()]);
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

    async fn add_root(&self, root: &str, path: &StorePath) -> Result<(), NixError> {
        let root = self.roots.join(root);
        link(Path::new(path.as_str()), &root).map_err(|source| NixError::AddRoot { path: root, source })
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

/// Whether a path is whole, so far as can be seen without asking the store, which dates what it has completed to the first second
/// of 1970; what is written to it or removed from it changes that.
pub fn is_complete(path: &Path) -> bool {
    const COMPLETE: i64 = 1;
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.mtime() == COMPLETE)
}

/// Have a root be a link to that path: what `--add-root` does, without a program to be started, and without another link in
/// `gcroots/auto` that stays. While one takes the other's place there is none; what it kept is given up by then.
fn link(path: &Path, root: &Path) -> io::Result<()> {
    if fs::read_link(root).is_ok_and(|kept| kept == path) {
        return Ok(());
    }
    fs::create_dir_all(root.parent().unwrap_or(Path::new("/")))?;
    match fs::remove_file(root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => symlink(path, root),
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

    fn kept_by(store: &NixCommand, root: &str) -> PathBuf {
        fs::read_link(store.roots.join(root)).unwrap()
    }

    #[tokio::test]
    async fn a_path_has_a_root_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), "exit 1");
        assert_eq!(store.roots().await.unwrap(), [""; 0]);
        store.add_root("web-0", &runner()).await.unwrap();
        assert_eq!(store.roots().await.unwrap(), ["web-0"]);
        assert_eq!(kept_by(&store, "web-0"), Path::new(runner().as_str()));
        store.remove_root("web-0").await.unwrap();
        store.remove_root("web-0").await.unwrap();
        assert_eq!(store.roots().await.unwrap(), [""; 0]);
    }

    #[tokio::test]
    async fn a_root_keeps_what_it_was_added_for_last() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), "exit 1");
        let before = format!("{}-before", runner()).parse().unwrap();
        store.add_root("web-0", &before).await.unwrap();
        store.add_root("db-0", &before).await.unwrap();
        store.add_root("web-0", &runner()).await.unwrap();
        assert_eq!(kept_by(&store, "web-0"), Path::new(runner().as_str()));
        assert_eq!(kept_by(&store, "db-0"), Path::new(before.as_str()));
        assert_eq!(store.roots().await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn a_root_that_is_as_wanted_is_never_away() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), "exit 1");
        store.add_root("web-0", &runner()).await.unwrap();
        let number = |path: PathBuf| fs::symlink_metadata(path).unwrap().ino();
        // So that another one can't get its number.
        fs::hard_link(store.roots.join("web-0"), dir.path().join("first")).unwrap();
        store.add_root("web-0", &runner()).await.unwrap();
        assert_eq!(number(store.roots.join("web-0")), number(dir.path().join("first")));
    }

    #[tokio::test]
    async fn a_root_that_cannot_be_added_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), "exit 1");
        fs::write(&store.roots, "").unwrap();
        let error = store.add_root("web-0", &runner()).await.unwrap_err().to_string();
        assert!(error.contains("roots/web-0"), "{error}");
    }

    #[test]
    fn what_is_being_written_or_removed_is_not_complete() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_complete(&dir.path().join("nothing")));
        let path = dir.path().join("runner");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "").unwrap();
        assert!(!is_complete(&path));
        let completed = std::time::UNIX_EPOCH + Duration::from_secs(1);
        fs::File::open(&path).unwrap().set_modified(completed).unwrap();
        assert!(is_complete(&path));
        fs::remove_file(path.join("file")).unwrap();
        assert!(!is_complete(&path));
    }

    #[tokio::test]
    async fn a_path_is_realised_and_no_root_is_made_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), &format!(r#"[ "$*" = "--realise {}" ]"#, runner()));
        store.realise(&runner()).await.unwrap();
        assert_eq!(store.roots().await.unwrap(), [""; 0]);
    }

    #[tokio::test]
    async fn a_path_that_cannot_be_had_is_named_with_the_end_of_the_complaint() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), "seq 10000 >&2; echo the last word >&2; exit 1");
        let error = store.realise(&runner()).await.unwrap_err().to_string();
        assert!(error.contains(runner().as_str()) && error.contains("the last word"), "{error}");
        assert!(error.len() < 2 * MAX_COMPLAINT, "{}", error.len());
    }

    #[tokio::test]
    async fn a_download_that_never_ends_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = store(dir.path(), "exec tail -f /dev/null");
        store.max_wait = Duration::from_millis(10);
        let error = store.realise(&runner()).await.unwrap_err();
        assert!(matches!(error, NixError::TimedOut { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_host_without_nix_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = NixCommand::new(dir.path().join("roots"), Duration::from_secs(60));
        store.program = dir.path().join("nowhere");
        let error = store.realise(&runner()).await.unwrap_err();
        assert!(error.to_string().contains("PATH"), "{error}");
    }
}
