//! On which machine a host's data was made: started on another one, a copy of it would be the same node a second time.

use std::io;
use std::path::{Path, PathBuf};

use super::data;
use crate::probe::MachineId;

/// In the data's directory: the machine, as one line.
const FILE: &str = "machine";

/// Why a host's data isn't used.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error(
        "the data in {dir} was made on machine {made_on}, and this is machine {this}, where it would make a second host \
         of one: if it is a copy, move that directory away, and this host joins as a new node; if its disk was moved \
         here, and the other machine is off for good, remove {file}"
    )]
    Elsewhere { dir: PathBuf, file: PathBuf, made_on: String, this: MachineId },
    #[error("cannot read {path}, which says on which machine the data beside it was made: see that its disk works")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}: see that its disk works and has room")]
    Write { path: PathBuf, source: io::Error },
}

/// Refuses data that was made on another machine; what says nothing of that, says from now on that it was made here. Where
/// a machine doesn't tell which one it is, anything goes.
///
/// # Errors
/// When the data was made elsewhere, or the disk fails.
pub fn check(dir: &Path, machine: Option<&MachineId>) -> Result<(), MachineError> {
    let Some(this) = machine else { return Ok(()) };
    let file = dir.join(FILE);
    match std::fs::read_to_string(&file) {
        Ok(kept) if kept.trim_end() == this.as_str() => Ok(()),
        Ok(kept) => {
            let made_on = kept.trim_end().to_owned();
            Err(MachineError::Elsewhere { dir: dir.to_owned(), file, made_on, this: this.clone() })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let written = data::write_whole(dir, FILE, format!("{this}\n").as_bytes());
            written.map_err(|source| MachineError::Write { path: file, source })
        }
        Err(source) => Err(MachineError::Read { path: file, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(digit: char) -> MachineId {
        MachineId::of(&"4c4c4544-0042-4a10-8056-b3c04f4e3532".replace('5', &digit.to_string())).unwrap()
    }

    #[test]
    fn data_is_used_on_the_machine_that_it_was_made_on_and_on_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let (own, other) = (machine('7'), machine('8'));
        for _ in 0..2 {
            check(dir.path(), Some(&own)).unwrap();
        }
        let refused = check(dir.path(), Some(&other)).unwrap_err().to_string();
        let file = dir.path().join(FILE).display().to_string();
        for word in [own.as_str(), other.as_str(), &format!("remove {file}"), "move that directory away"] {
            assert!(refused.contains(word), "{word}: {refused}");
        }
        check(dir.path(), Some(&own)).unwrap();
        std::fs::remove_file(file).unwrap();
        check(dir.path(), Some(&other)).unwrap();
        check(dir.path(), Some(&own)).unwrap_err();
    }

    #[test]
    fn a_machine_that_does_not_tell_which_one_it_is_keeps_what_is_known() {
        let dir = tempfile::tempdir().unwrap();
        check(dir.path(), None).unwrap();
        check(dir.path(), Some(&machine('7'))).unwrap();
        check(dir.path(), None).unwrap();
        check(dir.path(), Some(&machine('8'))).unwrap_err();
    }
}
