//! The cluster secret: what every host of a cluster is given in a file, and what proves to a stranger that it was.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use blixard_core::types::SecretId;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::SecureRandom;
use ring::{hkdf, hmac};

use super::random;

/// Shortest secret that is taken, in bytes; what guessing costs grows with it.
pub const MIN_SECRET: usize = 32;
/// Longest secret file that is read, in bytes.
const MAX_SECRET: usize = 64 * 1024;

/// Why a cluster secret, or what it sealed, could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("cannot read the cluster secret {}: check cluster.secret_file and cluster.next_secret_file, and who may read them", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "the cluster secret {} has {length} bytes, and must have {MIN_SECRET} to {MAX_SECRET}: \
         make one with `openssl rand -hex 32`, the same on every host",
        path.display()
    )]
    Length { path: PathBuf, length: usize },
    #[error(
        "cannot open {what}: it was sealed with another cluster secret than this host has: put the cluster's own into \
         cluster.secret_file, which is the one that it was last rotated to, or, of an older backup, the one of then"
    )]
    Other { what: &'static str },
    #[error("cannot open {what}: it is damaged")]
    Damaged { what: &'static str },
}

/// The secret that all hosts of a cluster share; never printed, never sent.
#[derive(Clone)]
pub struct ClusterSecret(Vec<u8>);

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(…)")
    }
}

impl ClusterSecret {
    /// The content of the file at `path`, without newlines at its end.
    ///
    /// # Errors
    /// `Read` or `Length`, each naming the file.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        let failed = |source| SecretError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(MAX_SECRET as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        while bytes.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
            bytes.pop();
        }
        if !(MIN_SECRET..=MAX_SECRET).contains(&bytes.len()) {
            return Err(SecretError::Length { path: path.to_owned(), length: bytes.len() });
        }
        Ok(Self(bytes))
    }

    /// HMAC-SHA256 over `parts`.
    ///
    /// `label` says what is proved; a proof of one thing is never one of another.
    pub fn prove(&self, label: &str, parts: &[&[u8]]) -> [u8; 32] {
        let tag = hmac::sign(&self.proof_key(), &transcript(label, parts));
        tag.as_ref().try_into().expect("an HMAC-SHA256 has 32 bytes")
    }

    /// Whether `proof` is what [`Self::prove`] returns for the same label and parts; takes constant time.
    pub fn verify(&self, label: &str, parts: &[&[u8]], proof: &[u8]) -> bool {
        hmac::verify(&self.proof_key(), &transcript(label, parts), proof).is_ok()
    }

    /// By which it is known to who doesn't have it.
    pub fn id(&self) -> SecretId {
        SecretId(*self.derive("id").first_chunk().expect("a key is longer"))
    }

    /// `plain`, encrypted and authenticated under a key derived from the secret for `purpose`: the secret's id, nonce,
    /// ciphertext.
    pub fn seal(&self, purpose: &'static str, plain: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = random();
        let mut sealed = plain.to_vec();
        self.seal_key(purpose)
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(purpose), &mut sealed)
            .expect("chacha20poly1305 seals anything that fits in memory");
        sealed.splice(0..0, self.id().0.into_iter().chain(nonce));
        sealed
    }

    /// What [`Self::seal`] was given.
    ///
    /// # Errors
    /// `Other` if it was sealed with another secret; `Damaged` if for another purpose, or it was changed.
    pub fn open(&self, purpose: &'static str, sealed: &[u8]) -> Result<Vec<u8>, SecretError> {
        if SecretId::of_sealed(sealed) != Some(self.id()) {
            return Err(SecretError::Other { what: purpose });
        }
        let failed = || SecretError::Damaged { what: purpose };
        let sealed = &sealed[self.id().0.len()..];
        let (nonce, ciphertext) = sealed.split_at_checked(NONCE_LEN).ok_or_else(failed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| failed())?;
        let mut buffer = ciphertext.to_vec();
        let plain =
            self.seal_key(purpose).open_in_place(nonce, Aad::from(purpose), &mut buffer).map_err(|_| failed())?;
        Ok(plain.to_vec())
    }

    fn proof_key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.derive("join proof"))
    }

    fn seal_key(&self, purpose: &str) -> LessSafeKey {
        let key = UnboundKey::new(&CHACHA20_POLY1305, &self.derive(purpose)).expect("the key has 32 bytes");
        LessSafeKey::new(key)
    }

    /// HKDF-SHA256 of the secret; one key a purpose.
    fn derive(&self, purpose: &str) -> [u8; 32] {
        let mut key = [0; 32];
        let info = [purpose.as_bytes()];
        hkdf::Salt::new(hkdf::HKDF_SHA256, b"blixard cluster secret 1")
            .extract(&self.0)
            .expand(&info, hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut key))
            .expect("one SHA-256 is a length that HKDF expands to");
        key
    }
}

/// Bytes of what is proved, or signed: each part is preceded by its length, so that no two lists of parts have the same.
pub(super) fn transcript(label: &str, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in std::iter::once(&label.as_bytes()).chain(parts) {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

/// Fills `bytes` from the system's random source.
pub(super) fn fill_random(bytes: &mut [u8]) {
    ring::rand::SystemRandom::new().fill(bytes).expect("the kernel's random source never fails once it is seeded");
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write as _;

    use super::*;

    pub fn in_file(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::Builder::new().prefix("secret").tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn secret(content: &[u8]) -> Result<ClusterSecret, SecretError> {
        ClusterSecret::read(in_file(content).path())
    }

    #[test]
    fn newlines_at_the_end_of_the_file_are_no_part_of_the_secret() {
        let plain = secret(&[b'a'; 32]).unwrap();
        let edited = secret(format!("{}\r\n\n", "a".repeat(32)).as_bytes()).unwrap();
        assert_eq!(plain.prove("x", &[]), edited.prove("x", &[]));
        assert_eq!(format!("{plain:?}"), "ClusterSecret(…)");
    }

    #[test]
    fn a_short_a_huge_or_a_missing_secret_is_refused_by_name() {
        for content in [vec![], vec![b'a'; 31], [vec![b'a'; 31], vec![b'\n'; 9]].concat(), vec![b'a'; MAX_SECRET + 1]] {
            let error = secret(&content).unwrap_err().to_string();
            assert!(error.contains("/secret") && error.contains("openssl rand"), "{error}");
        }
        let error = ClusterSecret::read(Path::new("/nowhere/secret")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/secret") && error.contains("cluster.secret_file"), "{error}");
    }

    #[test]
    fn a_proof_holds_for_its_own_label_parts_and_secret_only() {
        let (one, other) = (secret(&[1; 32]).unwrap(), secret(&[2; 32]).unwrap());
        let proof = one.prove("server", &[b"ab", b"c"]);
        assert!(one.verify("server", &[b"ab", b"c"], &proof));
        assert!(!one.verify("server", &[b"a", b"bc"], &proof));
        assert!(!one.verify("joiner", &[b"ab", b"c"], &proof));
        assert!(!one.verify("server", &[b"ab", b"c"], &proof[..31]));
        assert!(!one.verify("server", &[b"ab", b"c"], b""));
        assert!(!other.verify("server", &[b"ab", b"c"], &proof));
    }

    #[test]
    fn what_was_sealed_opens_only_whole_and_with_the_same_secret() {
        let (one, other) = (secret(&[1; 32]).unwrap(), secret(&[2; 32]).unwrap());
        let sealed = one.seal("a key", b"plain");
        assert_eq!(one.open("a key", &sealed).unwrap(), b"plain");
        assert_ne!(sealed, one.seal("a key", b"plain"), "each sealing draws its own nonce");
        assert!(matches!(other.open("a key", &sealed), Err(SecretError::Other { .. })));
        assert!(matches!(one.open("another", &sealed), Err(SecretError::Damaged { .. })));
        for length in 0..sealed.len() {
            assert!(one.open("a key", &sealed[..length]).is_err());
        }
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(one.open("a key", &changed).is_err(), "byte {at}");
        }
    }
}
