//! The cluster secrets that a host has: the current one, and, while it is being rotated, the one that takes its place.

use std::path::Path;

use blixard_core::types::SecretIds;

use super::{ClusterSecret, SecretError};

/// At least one; each is as good as the other, but for what is sealed with one of them.
#[derive(Debug, Clone)]
pub struct Secrets {
    current: ClusterSecret,
    next: Option<ClusterSecret>,
}

impl Secrets {
    /// Those in these files. A next one that is the current one already is none.
    ///
    /// # Errors
    /// As [`ClusterSecret::read`].
    pub fn read(current: &Path, next: Option<&Path>) -> Result<Self, SecretError> {
        let current = ClusterSecret::read(current)?;
        let next = next.map(ClusterSecret::read).transpose()?.filter(|next| next.id() != current.id());
        Ok(Self { current, next })
    }

    pub fn current(&self) -> &ClusterSecret {
        &self.current
    }

    pub fn next(&self) -> Option<&ClusterSecret> {
        self.next.as_ref()
    }

    pub fn ids(&self) -> SecretIds {
        SecretIds { current: self.current.id(), next: self.next().map(ClusterSecret::id) }
    }

    /// All of them: first the one that is good for longer.
    pub fn newest_first(&self) -> impl Iterator<Item = &ClusterSecret> {
        self.next().into_iter().chain([&self.current])
    }

    /// The newest one of which this holds.
    pub fn find(&self, holds: impl Fn(&ClusterSecret) -> bool) -> Option<&ClusterSecret> {
        self.newest_first().find(|secret| holds(secret))
    }

    /// What one of them has sealed for this purpose.
    ///
    /// # Errors
    /// As [`ClusterSecret::open`].
    pub fn open(&self, purpose: &'static str, sealed: &[u8]) -> Result<Vec<u8>, SecretError> {
        match self.next().map(|next| next.open(purpose, sealed)) {
            None | Some(Err(SecretError::Other { .. })) => self.current.open(purpose, sealed),
            Some(opened) => opened,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::secret::tests::in_file;
    use super::*;

    fn secrets(current: u8, next: Option<u8>) -> Secrets {
        let files = [Some(current), next].map(|byte| byte.map(|byte| in_file(&[byte; 32])));
        let [current, next] = files.each_ref().map(|file| file.as_ref().map(tempfile::NamedTempFile::path));
        Secrets::read(current.unwrap(), next).unwrap()
    }

    #[test]
    fn either_opens_what_it_has_sealed_and_nobody_else_does() {
        let both = secrets(1, Some(2));
        for sealed in [both.current().seal("a key", b"plain"), both.next().unwrap().seal("a key", b"plain")] {
            assert_eq!(both.open("a key", &sealed).unwrap(), b"plain");
            assert!(matches!(secrets(3, Some(4)).open("a key", &sealed), Err(SecretError::Other { .. })));
            let cut = &sealed[..sealed.len() - 1];
            assert!(matches!(both.open("a key", cut), Err(SecretError::Damaged { .. })));
        }
    }

    #[test]
    fn a_next_one_that_is_the_current_one_is_none() {
        assert_eq!(secrets(1, Some(1)).ids(), secrets(1, None).ids());
        let both = secrets(1, Some(2));
        assert_eq!(both.ids().next, Some(secrets(2, None).ids().current));
        let order: Vec<_> = both.newest_first().map(ClusterSecret::id).collect();
        assert_eq!(order, [both.ids().next.unwrap(), both.ids().current]);
    }

    #[test]
    fn a_next_one_that_cannot_be_read_is_named() {
        let current = in_file(&[1; 32]);
        let error = Secrets::read(current.path(), Some(Path::new("/nowhere/next"))).unwrap_err().to_string();
        assert!(error.contains("/nowhere/next") && error.contains("cluster.next_secret_file"), "{error}");
        let short = in_file(&[1; 31]);
        assert!(matches!(Secrets::read(current.path(), Some(short.path())), Err(SecretError::Length { .. })));
    }
}
