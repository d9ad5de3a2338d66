//! In which boot of its host an agent runs.

use std::path::Path;

use blixard_core::types::Hash;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::gate::files::{self, FileError};

/// In the run directory, which is empty after a boot.
const FILE: &str = "boot.json";

/// The same for every agent of one boot, and another one after each: drawn, and kept where no boot leaves it.
///
/// The kernel's own id of the boot won't do: a confined service in a container reads that of the machine.
///
/// # Errors
/// When the run directory can't be read or written.
pub fn boot(run_dir: &Path) -> Result<Hash, FileError> {
    let path = run_dir.join(FILE);
    if let Some(drawn) = files::read(&path)? {
        return Ok(drawn);
    }
    let mut drawn = [0; 32];
    getrandom(&mut drawn, GetRandomFlags::empty()).expect("so few bytes can always be had");
    let drawn = Hash::from_bytes(drawn);
    files::write(&path, &drawn)?;
    Ok(drawn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_the_same_for_every_agent_until_the_run_directory_is_empty_again() {
        let run_dir = tempfile::tempdir().unwrap();
        let first = boot(run_dir.path()).unwrap();
        assert_eq!(boot(run_dir.path()).unwrap(), first);
        std::fs::remove_file(run_dir.path().join(FILE)).unwrap();
        assert_ne!(boot(run_dir.path()).unwrap(), first);
    }
}
