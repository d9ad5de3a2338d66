//! Where a host's data may be used: a copy of it that is started elsewhere is the same node a second time.

use std::io;
use std::path::{Path, PathBuf};

use blixard_core::ANEW;

use super::data;
use crate::probe::MachineId;

/// In the data's directory: the machine that the data was made on, as one line.
const FILE: &str = "machine";
/// What it says instead where the other members have heard two agents of this host at once.
const COPIED: &str = "none, as there is a copy";
/// What it says instead where a leader has this server's word for more than is here.
const OUTDATED: &str = "none, as its log is lost";

/// Why no start goes on from a host's data, before a person has done something about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forbidden {
    /// Another agent speaks for this host: a person is to choose one of the two.
    Copied,
    /// It lacks what this server has acknowledged: where no leader is there to say so, it would promise something else.
    Outdated,
}

/// Why a host's data isn't used.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error(
        "the data in {dir} was made on machine {made_on}, and this is machine {this}, where it would make a second host \
         of one: if it is a copy, move that directory away, and this host joins as a new node; if its disk was moved \
         here, and the other machine is off for good, remove {file}"
    )]
    Elsewhere { dir: PathBuf, file: PathBuf, made_on: String, this: MachineId },
    #[error(
        "the data in {dir} is in two places, and an agent ran in both: at one of them, move it away, and that host joins \
         as a new node; at the other, remove {file}, and it goes on as it was"
    )]
    Copied { dir: PathBuf, file: PathBuf },
    #[error(
        "the data in {dir} is older than what this server has acknowledged: its disk was replaced, or put back to an earlier \
         time; {ANEW}"
    )]
    Outdated { dir: PathBuf },
    #[error("cannot read {path}, which says on which machine the data beside it was made: see that its disk works")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}: see that its disk works and has room")]
    Write { path: PathBuf, source: io::Error },
}

/// Refuses data that was made on another machine, or is forbidden; what says nothing of that, says from
/// now on that it was made here. A machine that doesn't tell which one it is may be any.
///
/// # Errors
/// When the data isn't to be used here, or the disk fails.
pub fn check(dir: &Path, machine: Option<&MachineId>) -> Result<(), MachineError> {
    let file = dir.join(FILE);
    let kept = match std::fs::read_to_string(&file) {
        Ok(kept) => Some(kept.trim_end().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(MachineError::Read { path: file, source }),
    };
    match (kept, machine) {
        (Some(kept), _) if kept == COPIED => Err(MachineError::Copied { dir: dir.to_owned(), file }),
        (Some(kept), _) if kept == OUTDATED => Err(MachineError::Outdated { dir: dir.to_owned() }),
        (Some(made_on), Some(this)) if made_on != this.as_str() => {
            Err(MachineError::Elsewhere { dir: dir.to_owned(), file, made_on, this: this.clone() })
        }
        (None, Some(this)) => write(dir, this.as_str()),
        _ => Ok(()),
    }
}

/// Has every later start from this data be refused.
///
/// # Errors
/// When the disk fails.
pub fn forbid(dir: &Path, why: Forbidden) -> Result<(), MachineError> {
    write(
        dir,
        match why {
            Forbidden::Copied => COPIED,
            Forbidden::Outdated => OUTDATED,
        },
    )
}

fn write(dir: &Path, line: &str) -> Result<(), MachineError> {
    let written = data::write_whole(dir, FILE, format!("{line}\n").as_bytes());
    written.map_err(|source| MachineError::Write { path: dir.join(FILE), source })
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

    #[test]
    fn data_that_is_in_two_places_is_used_nowhere_before_a_person_has_chosen() {
        for own in [None, Some(machine('7'))] {
            let dir = tempfile::tempdir().unwrap();
            check(dir.path(), own.as_ref()).unwrap();
            forbid(dir.path(), Forbidden::Copied).unwrap();
            let refused = check(dir.path(), own.as_ref()).unwrap_err().to_string();
            let file = dir.path().join(FILE);
            assert!(refused.contains(&format!("remove {}", file.display())), "{refused}");
            std::fs::remove_file(file).unwrap();
            check(dir.path(), own.as_ref()).unwrap();
        }
    }

    #[test]
    fn data_that_lacks_what_was_acknowledged_is_never_used_again() {
        for own in [None, Some(machine('7'))] {
            let dir = tempfile::tempdir().unwrap();
            check(dir.path(), own.as_ref()).unwrap();
            forbid(dir.path(), Forbidden::Outdated).unwrap();
            for _ in 0..2 {
                let refused = check(dir.path(), own.as_ref()).unwrap_err().to_string();
                assert!(refused.contains("earlier time") && refused.contains("blixard node replace"), "{refused}");
            }
        }
    }
}
