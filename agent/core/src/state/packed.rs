//! Values that are kept as their rows: most are written once and looked into seldom.

use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A value as the bytes that the store keeps of it: they take a third of its memory, and are shared with whoever writes
/// them. Each look decodes it.
#[derive(Clone, Debug)]
pub(super) struct Packed<T> {
    bytes: Arc<[u8]>,
    of: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned> Packed<T> {
    pub(super) fn of(value: &T) -> Self {
        Self { bytes: encode(value), of: PhantomData }
    }

    /// The row that these bytes are; nothing where they aren't one.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        decode::<T>(bytes).map(|_| Self { bytes: bytes.into(), of: PhantomData })
    }

    pub(super) fn value(&self) -> T {
        decode(&self.bytes).expect("it was read or written as one")
    }

    /// The first fields of the value, whatever follows them.
    pub(super) fn head<'a, H: Deserialize<'a>>(&'a self) -> H {
        postcard::take_from_bytes(&self.bytes).expect("a value has its first fields").0
    }

    pub(super) fn bytes(&self) -> Arc<[u8]> {
        self.bytes.clone()
    }
}

/// Equal values have equal rows.
impl<T> PartialEq for Packed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}
impl<T> Eq for Packed<T> {}

pub(super) fn encode<T: Serialize>(value: &T) -> Arc<[u8]> {
    postcard::to_stdvec(value).expect("rows have no part that postcard refuses").into()
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Some(value),
        _ => None,
    }
}
