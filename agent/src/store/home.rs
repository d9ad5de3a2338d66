//! Where the files of a store are, so that tests can lose what wasn't synced.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use redb::StorageBackend;
use redb::backends::FileBackend;
use rustix::fs::Advice;

/// What lies in a home, one of each at most.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Name {
    Store,
    /// A store that isn't whole yet.
    Unfinished,
    /// A snapshot that isn't whole yet.
    Incoming,
    /// A snapshot that has overtaken the store.
    Snapshot,
}

/// The place of one store and of what lies beside it.
pub trait Home: Clone + Send + 'static {
    type File: StorageBackend;

    /// A file, where there is one; what is read of it comes from the disk.
    ///
    /// # Errors
    /// The operating system's.
    fn open(&self, name: Name) -> io::Result<Option<Self::File>>;
    /// An empty file, with a name that nothing has.
    ///
    /// # Errors
    /// The operating system's.
    fn create(&self, name: Name) -> io::Result<Self::File>;
    /// On disk when it returns; what had the name is gone.
    ///
    /// # Errors
    /// The operating system's.
    fn rename(&self, from: Name, to: Name) -> io::Result<()>;
    /// Whether or not there is one.
    ///
    /// # Errors
    /// The operating system's.
    fn remove(&self, name: Name) -> io::Result<()>;
    /// Makes names durable: those created, renamed and removed.
    ///
    /// # Errors
    /// The operating system's.
    fn sync(&self) -> io::Result<()>;
    /// For messages.
    fn path(&self, name: Name) -> PathBuf;
}

/// A place in a directory of the file system, by the path of its store; the others have endings.
#[derive(Clone, Debug)]
pub struct Beside(PathBuf);

impl Beside {
    pub fn path_of(store: &Path) -> Self {
        Self(store.to_owned())
    }
}

impl Home for Beside {
    type File = FileBackend;

    fn open(&self, name: Name) -> io::Result<Option<FileBackend>> {
        let file = match OpenOptions::new().read(true).write(true).open(self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        // After a failed sync the system's cache may show what the disk doesn't hold.
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
        // All of it is read: at once, and not page by page.
        rustix::fs::fadvise(&file, 0, None, Advice::WillNeed)?;
        backend(file).map(Some)
    }

    fn create(&self, name: Name) -> io::Result<FileBackend> {
        backend(OpenOptions::new().read(true).write(true).create_new(true).open(self.path(name))?)
    }

    fn rename(&self, from: Name, to: Name) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))?;
        self.sync()
    }

    fn remove(&self, name: Name) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        let directory = self.0.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()
    }

    fn path(&self, name: Name) -> PathBuf {
        let ending = match name {
            Name::Store => "",
            Name::Unfinished => ".unfinished",
            Name::Incoming => ".incoming",
            Name::Snapshot => ".snapshot",
        };
        let mut path = self.0.as_os_str().to_owned();
        path.push(ending);
        PathBuf::from(path)
    }
}

fn backend(file: File) -> io::Result<FileBackend> {
    FileBackend::new(file).map_err(io::Error::other)
}
