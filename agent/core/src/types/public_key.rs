//! Public keys by which hosts are declared.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use super::{InvalidValue, excerpt, text_newtype};

/// What comes before the key itself in the `SubjectPublicKeyInfo` of every Ed25519 key (RFC 8410).
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// An Ed25519 public key, written as its `SubjectPublicKeyInfo` in base64: the line that `openssl pkey -pubout` prints between
/// BEGIN and END.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The one that these bytes are.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for PublicKey {
    type Err = InvalidValue;
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let spki = BASE64.decode(text.as_bytes()).ok();
        let key = spki.and_then(|spki| spki.strip_prefix(&SPKI)?.try_into().ok());
        key.map(Self).ok_or_else(|| InvalidValue::PublicKey { text: excerpt(text) })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(&[&SPKI[..], &self.0].concat()))
    }
}

text_newtype!(PublicKey);

#[cfg(test)]
mod tests {
    use super::*;

    /// As openssl prints the one of RFC 8410, section 10.1.
    const TEXT: &str = "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";

    #[test]
    fn a_public_key_is_read_as_openssl_prints_it() {
        let key: PublicKey = TEXT.parse().unwrap();
        assert_eq!((key.as_bytes()[0], key.to_string().as_str()), (0x19, TEXT));
        assert_eq!(PublicKey::from_bytes(key.as_bytes().try_into().unwrap()), key);
    }

    #[test]
    fn a_key_of_another_kind_or_length_or_with_more_around_it_is_refused() {
        for text in [
            "",
            "GUI=",
            &TEXT[..59],
            &format!("{TEXT}\n"),
            &TEXT.replace("MCow", "MCoA"),
            &TEXT.replace("uE=", "uF="),
            // X25519
            &TEXT.replace("VwAy", "VuAy"),
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBm/RAlphM3+hUG6wWfcO5bIUIaqMLa2ywxcOK1wMWbh",
        ] {
            let error = text.parse::<PublicKey>().expect_err(text).to_string();
            assert!(error.contains("openssl pkey -pubout"), "{error}");
        }
    }
}
