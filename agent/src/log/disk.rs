//! What the log asks of a directory, so that tests can lose what wasn't synced.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::LogError;

const LOCK: &str = "lock";

/// One directory.
pub trait Disk {
    type File: DiskFile;

    /// # Errors
    /// The operating system's.
    fn names(&self) -> io::Result<Vec<String>>;
    /// The whole file.
    ///
    /// # Errors
    /// The operating system's.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// An empty file; what had the name is gone.
    ///
    /// # Errors
    /// The operating system's.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// # Errors
    /// The operating system's.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// # Errors
    /// The operating system's.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes names durable: those created, renamed and removed.
    ///
    /// # Errors
    /// The operating system's.
    fn sync(&self) -> io::Result<()>;
    /// The file's path, for messages.
    fn path(&self, name: &str) -> PathBuf;
    /// A number that no other segment has, so that old bytes are never taken for new ones.
    fn salt(&self) -> u64;
}

/// A file that only grows.
pub trait DiskFile {
    /// # Errors
    /// The operating system's; part of the bytes may be written then.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes all bytes durable.
    ///
    /// # Errors
    /// The operating system's; it is unknown then what the disk holds, and a second try would not tell.
    fn sync(&mut self) -> io::Result<()>;
}

/// A directory of the file system, locked against other agents.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    handle: File,
    _lock: File,
}

impl Directory {
    /// # Errors
    /// When it can't be made or read, or another process has it locked.
    pub fn open(path: &Path) -> Result<Self, LogError> {
        let path = path.to_owned();
        let open = || {
            let missing: Vec<&Path> = path.ancestors().take_while(|directory| !directory.exists()).collect();
            fs::create_dir_all(&path)?;
            for parent in missing.iter().filter_map(|made| made.parent()) {
                let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                File::open(parent)?.sync_all()?;
            }
            let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path.join(LOCK))?;
            Ok((File::open(&path)?, lock))
        };
        let (handle, lock) = open().map_err(|source| LogError::OpenDirectory { path: path.clone(), source })?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, handle, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(LogError::Locked { path }),
            Err(TryLockError::Error(source)) => Err(LogError::OpenDirectory { path, source }),
        }
    }
}

impl Directory {
    /// Removes the log for good.
    ///
    /// # Errors
    /// When the directory can't be changed.
    pub fn remove(self) -> Result<(), LogError> {
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let removed = fs::remove_dir_all(&self.path).and_then(|()| File::open(parent)?.sync_all());
        removed.map_err(|source| LogError::OpenDirectory { path: self.path.clone(), source })
    }
}

impl Disk for Directory {
    type File = File;

    fn names(&self) -> io::Result<Vec<String>> {
        fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.path(name))
    }
    fn create(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().create(true).write(true).truncate(true).open(self.path(name))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }
    fn sync(&self) -> io::Result<()> {
        self.handle.sync_all()
    }
    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
    fn salt(&self) -> u64 {
        RandomState::new().build_hasher().finish()
    }
}

impl DiskFile for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}
