//! The key by which a host is declared: it vouches for the key of the node that the host asks to become.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use blixard_core::types::PublicKey;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;

use super::secret::transcript;

/// Longest key file that is read, in bytes.
const MAX_FILE: u64 = 4096;

/// Why a host's key could not be used.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    #[error("cannot read this host's key {}: check node.key_file, and who may read it", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "{} holds no Ed25519 private key in PEM: make one with `openssl genpkey -algorithm ed25519`, and declare what \
         `openssl pkey -pubout` prints of it",
        path.display()
    )]
    Unusable { path: PathBuf },
}

/// A host's private key, given to it from outside; a node's own key is made where it is used, and never twice.
pub struct HostKey(Ed25519KeyPair);

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostKey(…)")
    }
}

impl HostKey {
    /// The key in the file at `path`: PKCS#8, as PEM.
    ///
    /// # Errors
    /// `Read` or `Unusable`, each naming the file.
    pub fn read(path: &Path) -> Result<Self, HostKeyError> {
        let failed = |source| HostKeyError::Read { path: path.to_owned(), source };
        let mut pem = Vec::new();
        std::fs::File::open(path).map_err(failed)?.take(MAX_FILE).read_to_end(&mut pem).map_err(failed)?;
        let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).ok();
        // openssl leaves the public part out, so there is none to check it against.
        let key = der.and_then(|der| Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()).ok());
        key.map(Self).ok_or_else(|| HostKeyError::Unusable { path: path.to_owned() })
    }

    pub fn public(&self) -> PublicKey {
        let key = self.0.public_key().as_ref().try_into();
        PublicKey::from_bytes(key.expect("an Ed25519 public key has 32 bytes"))
    }

    /// A signature of `parts`; `label` says what is signed, and a signature of one thing is never one of another.
    pub fn sign(&self, label: &str, parts: &[&[u8]]) -> Vec<u8> {
        self.0.sign(&transcript(label, parts)).as_ref().to_vec()
    }
}

/// Whether `signature` is what [`HostKey::sign`] returns for the same label and parts, by the key that belongs to this one.
pub fn verify_signature(key: &PublicKey, label: &str, parts: &[&[u8]], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, key.as_bytes()).verify(&transcript(label, parts), signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// That of RFC 8410, section 10.3, as `openssl genpkey` would write it.
    const PEM: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        -----END PRIVATE KEY-----\n";
    const PUBLIC: &str = "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";

    fn read(content: &[u8]) -> Result<HostKey, HostKeyError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("key"), content).unwrap();
        HostKey::read(&dir.path().join("key"))
    }

    #[test]
    fn a_key_of_openssl_is_read_and_shows_only_its_public_part() {
        let key = read(PEM.as_bytes()).unwrap();
        assert_eq!(key.public().to_string(), PUBLIC);
        assert_eq!(format!("{key:?}"), "HostKey(…)");
    }

    #[test]
    fn a_signature_is_of_one_label_one_list_of_parts_and_one_key() {
        let (key, other) = (read(PEM.as_bytes()).unwrap().public(), PublicKey::from_bytes([7; 32]));
        let signature = read(PEM.as_bytes()).unwrap().sign("join", &[b"ab", b"c"]);
        assert!(verify_signature(&key, "join", &[b"ab", b"c"], &signature));
        assert!(!verify_signature(&other, "join", &[b"ab", b"c"], &signature));
        assert!(!verify_signature(&key, "leave", &[b"ab", b"c"], &signature));
        assert!(!verify_signature(&key, "join", &[b"a", b"bc"], &signature));
        assert!(!verify_signature(&key, "join", &[b"ab", b"c"], &signature[1..]));
    }

    #[test]
    fn a_missing_file_or_one_with_another_kind_of_key_is_named_with_what_to_do() {
        let p256 = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let public = format!("-----BEGIN PUBLIC KEY-----\n{PUBLIC}\n-----END PUBLIC KEY-----\n");
        let long = [vec![b'\n'; 4096], PEM.as_bytes().to_vec()].concat();
        for content in
            [&b""[..], b"secret", &[0xff; 9], &PEM.as_bytes()[..60], p256.as_bytes(), public.as_bytes(), &long]
        {
            let error = read(content).unwrap_err().to_string();
            assert!(error.contains("/key") && error.contains("openssl genpkey"), "{error}");
        }
        let error = HostKey::read(Path::new("/nowhere/key")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/key") && error.contains("node.key_file"), "{error}");
    }
}
