//! A file that can be shut off from its database, as a crash would do it.

use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::{BackendError, StorageBackend};

#[derive(Debug)]
pub(super) struct Valve<B> {
    backend: B,
    shut: Arc<AtomicBool>,
}

impl<B> Valve<B> {
    pub(super) fn new(backend: B, shut: Arc<AtomicBool>) -> Self {
        Self { backend, shut }
    }

    fn pass(&self) -> io::Result<()> {
        if self.shut.load(Ordering::Acquire) { Err(io::Error::other("the store is given up")) } else { Ok(()) }
    }
}

impl<B: StorageBackend> StorageBackend for Valve<B> {
    fn len(&self) -> io::Result<u64> {
        self.backend.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.backend.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.pass()?;
        self.backend.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.pass()?;
        self.backend.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.pass()?;
        self.backend.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.backend.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_range(start, end)
    }
    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_shared_range(start, end)
    }
    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_range(start, end)
    }
    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_shared_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.unlock_range(start, end)
    }
    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.query_lock_range(start, end)
    }
}
