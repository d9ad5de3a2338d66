//! The store's files on a disk that can lose its power, together with the log's disk: they count their writes as one.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use blixard::store::{Home, Name};
use redb::StorageBackend;

use super::power::{Power, Random, SECTOR};

#[derive(Default, Debug)]
struct Image {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// What `live` has and `durable` doesn't, in order.
    unsynced: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Length(usize),
    Bytes(usize, Vec<u8>),
}

/// All clones are the same place.
#[derive(Clone)]
pub struct Place {
    names: Arc<Mutex<Names>>,
    power: Power,
}

#[derive(Default)]
struct Names {
    live: BTreeMap<Name, Pages>,
    durable: BTreeMap<Name, Pages>,
    /// What `live` has and `durable` doesn't, in order.
    unsynced: Vec<Naming>,
}

#[derive(Clone)]
enum Naming {
    Create(Name, Pages),
    Rename(Name, Name),
    Remove(Name),
}

fn apply(names: &mut BTreeMap<Name, Pages>, naming: Naming) {
    match naming {
        Naming::Create(name, pages) => _ = names.insert(name, pages),
        Naming::Rename(from, to) => {
            let pages = names.remove(&from).expect("it is there");
            names.insert(to, pages);
        }
        Naming::Remove(name) => _ = names.remove(&name).expect("it is there"),
    }
}

impl Place {
    pub fn new(power: &Power) -> Self {
        Self { names: Arc::default(), power: power.clone() }
    }

    /// What is there when power is back: all names that were synced and some of the others, in order; and the same of bytes.
    pub fn back(&self, power: &Power, random: &mut Random) -> Self {
        let names = self.names.lock().unwrap();
        let mut live = names.durable.clone();
        for naming in &names.unsynced[..random.below(names.unsynced.len() + 1)] {
            apply(&mut live, naming.clone());
        }
        for pages in live.values_mut() {
            *pages = pages.back(power, random);
        }
        let names = Names { durable: live.clone(), live, unsynced: Vec::new() };
        Self { names: Arc::new(Mutex::new(names)), power: power.clone() }
    }

    fn name(&self, naming: Naming) -> io::Result<()> {
        self.power.spend()?;
        let mut names = self.names.lock().unwrap();
        apply(&mut names.live, naming.clone());
        names.unsynced.push(naming);
        Ok(())
    }
}

impl Home for Place {
    type File = Pages;

    fn open(&self, name: Name) -> io::Result<Option<Pages>> {
        Ok(self.names.lock().unwrap().live.get(&name).cloned())
    }

    fn create(&self, name: Name) -> io::Result<Pages> {
        assert!(self.open(name)?.is_none(), "{name:?} is there already");
        let pages = Pages::new(&self.power);
        self.name(Naming::Create(name, pages.clone()))?;
        Ok(pages)
    }

    fn rename(&self, from: Name, to: Name) -> io::Result<()> {
        self.name(Naming::Rename(from, to))?;
        self.sync()
    }

    fn remove(&self, name: Name) -> io::Result<()> {
        if self.open(name)?.is_some() { self.name(Naming::Remove(name)) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        self.power.spend()?;
        let mut names = self.names.lock().unwrap();
        names.durable = names.live.clone();
        names.unsynced.clear();
        Ok(())
    }

    fn path(&self, name: Name) -> PathBuf {
        PathBuf::from(format!("/power/state.redb {name:?}"))
    }
}

/// All clones are the same file.
#[derive(Clone)]
pub struct Pages {
    image: Arc<Mutex<Image>>,
    power: Power,
}

impl Pages {
    pub fn new(power: &Power) -> Self {
        Self { image: Arc::default(), power: power.clone() }
    }

    fn image(&self) -> MutexGuard<'_, Image> {
        self.image.lock().unwrap()
    }

    /// What the file holds when power is back: all that was synced, and of the rest any sectors in any order.
    pub fn back(&self, power: &Power, random: &mut Random) -> Self {
        let image = self.image();
        let mut bytes = image.durable.clone();
        let keeps = random.below(4);
        for change in &image.unsynced {
            match change {
                Change::Length(length) if keeps > 0 => bytes.resize(*length, 0),
                Change::Bytes(offset, data) if keeps > 0 => {
                    let end = offset + data.len();
                    bytes.resize(bytes.len().max(end), 0);
                    for sector in offset / SECTOR..end.div_ceil(SECTOR) {
                        let (from, to) = ((sector * SECTOR).max(*offset), ((sector + 1) * SECTOR).min(end));
                        if keeps == 3 || random.below(2) == 0 {
                            bytes[from..to].copy_from_slice(&data[from - offset..to - offset]);
                        }
                    }
                }
                Change::Length(_) | Change::Bytes(..) => {}
            }
        }
        let image = Image { live: bytes.clone(), durable: bytes, unsynced: Vec::new() };
        Self { image: Arc::new(Mutex::new(image)), power: power.clone() }
    }
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pages")
    }
}

impl StorageBackend for Pages {
    fn len(&self) -> io::Result<u64> {
        Ok(self.image().live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let image = self.image();
        let from = usize::try_from(offset).unwrap();
        let bytes = image.live.get(from..from + out.len());
        out.copy_from_slice(bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut image = self.image();
        let len = usize::try_from(len).unwrap();
        let spent = self.power.spend();
        // A system that goes on says what it hasn't done, and hasn't done it.
        if !spent.as_ref().is_err_and(|error| error.raw_os_error().is_some()) {
            image.unsynced.push(Change::Length(len));
            image.live.resize(len, 0);
        }
        spent
    }

    fn sync_data(&self) -> io::Result<()> {
        self.power.spend()?;
        let image = &mut *self.image();
        image.durable.clone_from(&image.live);
        image.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut image = self.image();
        let from = usize::try_from(offset).unwrap();
        let spent = self.power.spend();
        // When the power goes here, what it leaves of the bytes is for `back` to say; a full disk takes a part.
        let is_full = spent.as_ref().is_err_and(|error| error.raw_os_error().is_some());
        let data = if is_full { &data[..data.len() / 2] } else { data };
        image.unsynced.push(Change::Bytes(from, data.to_vec()));
        image.live[from..from + data.len()].copy_from_slice(data);
        spent
    }
}
