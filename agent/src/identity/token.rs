//! Join tokens as text: `blx1.` and, in base64url, what a host needs to find its cluster and be let into it once.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use blixard_core::types::{ClusterId, Hash, Timestamp, TokenId, TrustAnchor};
use data_encoding::BASE64URL_NOPAD;

use super::random;

const PREFIX: &str = "blx1.";
/// Cluster, key hash, id, secret, expiry; and the first bytes of the SHA-256 of all that, which tell a typing error.
const BODY: usize = 16 + 32 + 8 + SECRET + 8;
const CHECK: usize = 4;
const SECRET: usize = 32;
/// Longest token file that is read, in bytes.
const MAX_FILE: u64 = 4096;

/// Why a token could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("cannot read the join token {}: check cluster.token_file, and who may read it", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "{} holds no join token, or a part of one, or one with an error in it: copy all of what `blixard token create` \
         prints, {PREFIX}…",
        path.display()
    )]
    Garbled { path: PathBuf },
}

/// What is secret in a token; never printed but within one.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenSecret([u8; SECRET]);

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(…)")
    }
}

impl TokenSecret {
    /// A fresh one.
    pub fn draw() -> Self {
        Self(random())
    }

    /// What the cluster keeps of it.
    pub fn hash(&self) -> Hash {
        Hash::of(&self.0)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A token as its holder has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    pub anchor: TrustAnchor,
    pub id: TokenId,
    pub secret: TokenSecret,
    pub expires: Timestamp,
}

impl JoinToken {
    /// The token in the file at `path`.
    ///
    /// # Errors
    /// `Read` or `Garbled`, each naming the file.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        use std::io::Read as _;
        let mut text = String::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
        match read {
            Err(error) if error.kind() != std::io::ErrorKind::InvalidData => {
                Err(TokenError::Read { path: path.to_owned(), source: error })
            }
            _ => text.trim().parse().map_err(|Garbled| TokenError::Garbled { path: path.to_owned() }),
        }
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [
            &self.anchor.cluster.to_bytes()[..],
            &self.anchor.authority.to_bytes(),
            &self.id.0.to_be_bytes(),
            &self.secret.0,
            &self.expires.0.to_be_bytes(),
        ]
        .concat();
        bytes.extend_from_slice(&check(&bytes));
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

/// A text is no token.
#[derive(Debug, PartialEq, Eq)]
pub struct Garbled;

impl FromStr for JoinToken {
    type Err = Garbled;
    fn from_str(text: &str) -> Result<Self, Garbled> {
        let encoded = text.strip_prefix(PREFIX).ok_or(Garbled)?;
        let bytes = BASE64URL_NOPAD.decode(encoded.as_bytes()).map_err(|_| Garbled)?;
        let (body, end) = bytes.split_at_checked(BODY).ok_or(Garbled)?;
        if end != check(body) {
            return Err(Garbled);
        }
        let mut rest = body;
        Ok(Self {
            anchor: TrustAnchor {
                cluster: ClusterId::from_bytes(take(&mut rest)),
                authority: Hash::from_bytes(take(&mut rest)),
            },
            id: TokenId(u64::from_be_bytes(take(&mut rest))),
            secret: TokenSecret(take(&mut rest)),
            expires: Timestamp(u64::from_be_bytes(take(&mut rest))),
        })
    }
}

fn check(body: &[u8]) -> [u8; CHECK] {
    *Hash::of(body).to_bytes().first_chunk().expect("a hash is longer")
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (taken, after) = rest.split_first_chunk().expect("the body has the length of its parts");
    *rest = after;
    *taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            anchor: TrustAnchor { cluster: ClusterId::from_bytes([1; 16]), authority: Hash::of(b"a key") },
            id: TokenId(7),
            secret: TokenSecret::draw(),
            expires: Timestamp(1_700_000_000_000),
        }
    }

    fn read(content: &[u8]) -> Result<JoinToken, TokenError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), content).unwrap();
        JoinToken::read(&dir.path().join("token"))
    }

    #[test]
    fn a_token_reads_back_as_it_was_written_and_shows_no_secret_otherwise() {
        let token = token();
        let text = token.to_string();
        assert!(text.starts_with("blx1.") && text.len() == 139, "{text}");
        assert_eq!(read(format!("  {text}\n").as_bytes()).unwrap(), token);
        assert!(format!("{token:?}").contains("TokenSecret(…)"));
    }

    #[test]
    fn a_token_with_one_letter_changed_lost_or_added_is_none() {
        let text = token().to_string();
        for at in 0..text.len() {
            let other = if text.as_bytes()[at] == b'A' { "B" } else { "A" };
            let mut changed = text.clone();
            changed.replace_range(at..=at, other);
            let mut shorter = text.clone();
            shorter.remove(at);
            let mut longer = text.clone();
            longer.insert(at, 'A');
            for garbled in [changed, shorter, longer] {
                assert_eq!(garbled.parse::<JoinToken>(), Err(Garbled), "{garbled}");
            }
        }
    }

    #[test]
    fn a_missing_or_garbled_file_is_named_with_what_to_do() {
        for content in [&b""[..], b"blx1.", b"blx2.AAAA", &[0xff; 9], &[b'a'; 10_000]] {
            let error = read(content).unwrap_err().to_string();
            assert!(error.contains("/token") && error.contains("blixard token create"), "{error}");
        }
        let error = JoinToken::read(Path::new("/nowhere/token")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/token") && error.contains("cluster.token_file"), "{error}");
    }
}
