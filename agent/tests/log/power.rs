//! A disk that can lose its power, or fail: it keeps a live and a durable image, and counts every operation that writes.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use blixard::log::{Disk, DiskFile};

#[path = "../support/random.rs"]
mod random;

pub use random::Random;

pub const SECTOR: usize = 512;

#[derive(Default, Clone)]
struct Content {
    live: Vec<u8>,
    durable: Vec<u8>,
}

#[derive(Clone)]
enum Naming {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

#[derive(Default)]
struct Image {
    contents: Vec<Content>,
    live: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
    /// What `live` has and `durable` doesn't, in order.
    unsynced: Vec<Naming>,
    /// How many more writes succeed, and what comes then.
    ahead: Option<(usize, Fault)>,
    writes: usize,
    salt: u64,
}

/// What becomes of a write.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// It and all after it fail, with the power.
    PowerCut,
    /// It and all after it fail, with this error of the operating system.
    Lasting(i32),
    /// It fails, with this error, and none after it.
    Once(i32),
}

impl Image {
    /// Counts one write, or fails it.
    fn spend(&mut self) -> io::Result<()> {
        self.writes += 1;
        match &mut self.ahead {
            None => Ok(()),
            Some((0, fault)) => Err(match *fault {
                Fault::PowerCut => io::Error::other("the power is gone"),
                Fault::Lasting(error) => io::Error::from_raw_os_error(error),
                Fault::Once(error) => {
                    self.ahead = None;
                    io::Error::from_raw_os_error(error)
                }
            }),
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn name(&mut self, naming: Naming) {
        apply(&mut self.live, &naming);
        self.unsynced.push(naming);
    }
}

fn apply(names: &mut BTreeMap<String, usize>, naming: &Naming) {
    match naming {
        Naming::Create(name, content) => {
            names.insert(name.clone(), *content);
        }
        Naming::Rename(from, to) => {
            let content = names.remove(from).expect("it is there");
            names.insert(to.clone(), content);
        }
        Naming::Remove(name) => {
            names.remove(name).expect("it is there");
        }
    }
}

#[derive(Clone, Default)]
pub struct Power(Arc<Mutex<Image>>);

pub struct PowerFile {
    disk: Power,
    content: usize,
}

impl Power {
    fn image(&self) -> MutexGuard<'_, Image> {
        self.0.lock().unwrap()
    }

    /// After so many more writes, the power is gone.
    pub fn cut_after(&self, writes: usize) {
        self.fail_after(writes, Fault::PowerCut);
    }

    /// After so many more writes, one fails.
    pub fn fail_after(&self, writes: usize, fault: Fault) {
        self.image().ahead = Some((writes, fault));
    }

    /// Counts one write of something else that is on this power, or fails it.
    pub fn spend(&self) -> io::Result<()> {
        self.image().spend()
    }

    pub fn writes(&self) -> usize {
        self.image().writes
    }

    /// What the disk holds when power is back: all that was synced, and of the rest whatever `random` leaves of it.
    pub fn back(&self, random: &mut Random) -> Self {
        let image = self.image();
        let mut names = image.durable.clone();
        for naming in &image.unsynced[..random.below(image.unsynced.len() + 1)] {
            apply(&mut names, naming);
        }
        let contents: Vec<Content> = image.contents.iter().map(|content| survivor(content, random)).collect();
        let salt = image.salt;
        let image = Image { contents, live: names.clone(), durable: names, salt, ..Image::default() };
        Self(Arc::new(Mutex::new(image)))
    }
}

/// Synced bytes, and each sector behind them written, zero, or cut off.
fn survivor(content: &Content, random: &mut Random) -> Content {
    let mut bytes = content.durable.clone();
    let unsynced = &content.live[bytes.len()..];
    let kept = match random.below(3) {
        0 => 0,
        1 => random.below(unsynced.len() + 1),
        _ => unsynced.len(),
    };
    let (begin, end) = (bytes.len(), bytes.len() + kept);
    bytes.extend(&unsynced[..kept]);
    let lossy = random.below(2) == 0;
    for sector in begin / SECTOR..end.div_ceil(SECTOR) {
        if lossy && random.below(2) == 0 {
            bytes[(sector * SECTOR).max(begin)..((sector + 1) * SECTOR).min(end)].fill(0);
        }
    }
    Content { live: bytes.clone(), durable: bytes }
}

impl Disk for Power {
    type File = PowerFile;

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.image().live.keys().cloned().collect())
    }
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let image = self.image();
        Ok(image.contents[image.live[name]].live.clone())
    }
    fn create(&self, name: &str) -> io::Result<PowerFile> {
        let mut image = self.image();
        image.spend()?;
        let content = image.contents.len();
        image.contents.push(Content::default());
        image.name(Naming::Create(name.to_owned(), content));
        Ok(PowerFile { disk: self.clone(), content })
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.spend()?;
        self.image().name(Naming::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.spend()?;
        self.image().name(Naming::Remove(name.to_owned()));
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        let mut image = self.image();
        image.spend()?;
        image.durable = image.live.clone();
        image.unsynced.clear();
        Ok(())
    }
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/power").join(name)
    }
    fn salt(&self) -> u64 {
        let mut image = self.image();
        image.salt += 1;
        image.salt
    }
}

impl DiskFile for PowerFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut image = self.disk.image();
        // When the power goes here, what it leaves of the bytes is for `survivor` to say.
        image.contents[self.content].live.extend(bytes);
        let spent = image.spend();
        if spent.as_ref().is_err_and(|error| error.raw_os_error().is_some()) {
            // A full disk takes a part.
            let live = &mut image.contents[self.content].live;
            live.truncate(live.len() - bytes.len().div_ceil(2));
        }
        spent
    }
    fn sync(&mut self) -> io::Result<()> {
        let mut image = self.disk.image();
        image.spend()?;
        let content = &mut image.contents[self.content];
        content.durable = content.live.clone();
        Ok(())
    }
}
