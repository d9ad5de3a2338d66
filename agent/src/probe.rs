//! What this machine is: what it offers to instances before anything is reserved.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use blixard_core::types::{Hypervisor, Resources};

/// Where firmware says which machine it is: DMI, and the device tree.
const MACHINE_IDS: [&str; 2] = ["/sys/class/dmi/id/product_uuid", "/sys/firmware/devicetree/base/serial-number"];
/// What many boards have whose maker has set nothing.
const GENERIC_IDS: [&str; 2] = ["03000200-0400-0500-0006-000700080009", "12345678-1234-5678-90ab-cddeefaabbcc"];
/// How hypervisors call themselves or their machines in DMI.
const HYPERVISORS: [&str; 10] = [
    "QEMU",
    "KVM",
    "Amazon EC2",
    "Apple Virtualization",
    "Google Compute Engine",
    "VMware",
    "VirtualBox",
    "Parallels",
    "Xen",
    "Virtual Machine",
];

/// What was found of this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    /// All of it: CPUs online, memory, and the size of the file system that holds the data directory.
    pub resources: Resources,
    /// Nix's name of the architecture, like `x86_64-linux`.
    pub system: String,
    /// Whether this process may use `/dev/kvm`.
    pub kvm: bool,
    /// Every one that microvm.nix knows: a runner brings its own hypervisor.
    pub hypervisors: BTreeSet<Hypervisor>,
}

/// Why something of this machine can't be found out.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("cannot read {}: is /proc mounted?", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot find MemTotal in /proc/meminfo; set resources.memory_mib")]
    Memory,
    #[error("cannot count this machine's CPUs; set resources.cpus")]
    Cpus { source: io::Error },
    #[error("cannot size the file system of {}: does the directory exist?", path.display())]
    Disk { path: PathBuf, source: io::Error },
}

/// By which a machine is known, whatever disk is in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MachineId(String);

impl MachineId {
    /// What firmware says, unless it says that to everybody.
    pub fn of(text: &str) -> Option<Self> {
        let id = text.trim_matches(|c: char| c == '\0' || c.is_whitespace()).to_ascii_lowercase();
        let is_of_one = |filler: char| id.chars().all(|c| c == filler || c == '-');
        let is_printable = id.chars().all(|c| c.is_ascii_graphic());
        (is_printable && !is_of_one('0') && !is_of_one('f') && !GENERIC_IDS.contains(&id.as_str())).then_some(Self(id))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which machine this is, if it tells.
pub fn machine_id() -> Option<MachineId> {
    // Who can't be read is no different from who doesn't tell.
    MACHINE_IDS.iter().find_map(|path| MachineId::of(&fs::read_to_string(path).ok()?))
}

/// What this machine runs on, if it is a virtual one: that may pause it, and none of its clocks shows it.
pub fn hypervisor() -> Option<String> {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let vendor =
        format!("{} {}", text("/sys/class/dmi/id/sys_vendor").trim(), text("/sys/class/dmi/id/product_name").trim());
    hypervisor_of(&text("/proc/cpuinfo"), &vendor, &text("/sys/firmware/devicetree/base/hypervisor/compatible"))
}

/// On x86 a bit of the CPU says so, of whatever hypervisor; elsewhere firmware does, of those that are known.
fn hypervisor_of(cpuinfo: &str, vendor: &str, compatible: &str) -> Option<String> {
    let mut flags = cpuinfo.lines().filter_map(|line| line.strip_prefix("flags")?.split_once(':'));
    let said = |text: &str| {
        Some(text.trim_matches(|c: char| c == '\0' || c.is_whitespace()).to_owned()).filter(|t| !t.is_empty())
    };
    match flags.next() {
        Some((_, flags)) if flags.split_whitespace().any(|flag| flag == "hypervisor") => {
            said(vendor).or_else(|| Some("of an unknown kind".to_owned()))
        }
        Some(_) => None,
        None => {
            said(compatible).or_else(|| said(vendor).filter(|vendor| HYPERVISORS.iter().any(|h| vendor.contains(h))))
        }
    }
}

/// Find out what this machine is; `data_dir` must exist.
///
/// # Errors
/// One variant a thing that can't be found out, each naming the setting that makes it unnecessary.
pub fn machine(data_dir: &Path) -> Result<Machine, ProbeError> {
    let cpus = std::thread::available_parallelism().map_err(|source| ProbeError::Cpus { source })?;
    Ok(Machine {
        resources: Resources {
            cpus: u32::try_from(cpus.get()).unwrap_or(u32::MAX),
            memory_mib: memory_mib(&text("/proc/meminfo")?).ok_or(ProbeError::Memory)?,
            disk_mib: disk_mib(data_dir)?,
        },
        system: system(),
        kvm: fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok(),
        hypervisors: Hypervisor::ALL.into(),
    })
}

/// What can still be written to the file system that holds `dir`.
///
/// # Errors
/// `Disk`.
pub fn free_bytes(dir: &Path) -> Result<u64, ProbeError> {
    let stat = stat_disk(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Nix's name of the architecture that this program was built for.
pub fn system() -> String {
    format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)
}

fn text(path: &str) -> Result<String, ProbeError> {
    fs::read_to_string(path).map_err(|source| ProbeError::Read { path: path.into(), source })
}

fn memory_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

fn disk_mib(dir: &Path) -> Result<u64, ProbeError> {
    let stat = stat_disk(dir)?;
    Ok(u64::try_from((u128::from(stat.f_blocks) * u128::from(stat.f_frsize)) >> 20).unwrap_or(u64::MAX))
}

fn stat_disk(dir: &Path) -> Result<rustix::fs::StatVfs, ProbeError> {
    rustix::fs::statvfs(dir).map_err(|error| ProbeError::Disk { path: dir.to_owned(), source: error.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_something_of_everything() {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(dir.path()).unwrap();
        let Resources { cpus, memory_mib, disk_mib } = machine.resources;
        assert!(cpus > 0 && memory_mib > 0 && disk_mib > 0, "{machine:?}");
        assert!(machine.system.ends_with("-linux"), "{}", machine.system);
        assert_eq!(machine.hypervisors.len(), Hypervisor::ALL.len());
    }

    #[test]
    fn memory_is_read_as_the_kernel_writes_it() {
        assert_eq!(memory_mib("MemTotal:       16384000 kB\nMemFree: 1 kB\n"), Some(16000));
        assert_eq!(memory_mib("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn a_machine_is_known_by_what_its_firmware_says_to_nobody_else() {
        let id = |text: &str| MachineId::of(text).map(|id| id.to_string());
        let uuid = "4c4c4544-0042-4a10-8056-b3c04f4e3532";
        assert_eq!(id(&format!("{}\n", uuid.to_uppercase())).as_deref(), Some(uuid));
        assert_eq!(id("10000000a1b2c3d4\0").as_deref(), Some("10000000a1b2c3d4"));
        let said_to_all = [
            "",
            "00000000-0000-0000-0000-000000000000\n",
            "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
            "03000200-0400-0500-0006-000700080009",
            "Not Specified",
        ];
        assert_eq!(said_to_all.map(id), [const { None }; 5]);
    }

    #[test]
    fn a_virtual_machine_is_known_as_one() {
        let x86 =
            |flags: &str, vendor: &str| hypervisor_of(&format!("processor\t: 0\nflags\t\t: {flags}\n"), vendor, "");
        assert_eq!(x86("fpu vme de hypervisor lm", "QEMU Standard PC").as_deref(), Some("QEMU Standard PC"));
        assert_eq!(x86("fpu hypervisor", " ").as_deref(), Some("of an unknown kind"));
        assert_eq!(x86("fpu vme de lm", "Amazon EC2 m7i.metal"), None, "the bit knows better");
        let arm =
            |vendor: &str, compatible: &str| hypervisor_of("processor\t: 0\nFeatures\t: fp\n", vendor, compatible);
        assert_eq!(arm("QEMU QEMU Virtual Machine", "").as_deref(), Some("QEMU QEMU Virtual Machine"));
        assert_eq!(arm("", "xen,xen-4.17\0").as_deref(), Some("xen,xen-4.17"));
        assert_eq!(arm("Ampere Altra", ""), None);
        assert_eq!(arm(" ", ""), None);
    }

    #[test]
    fn a_data_directory_that_is_not_there_is_named() {
        let error = disk_mib(Path::new("/nowhere")).unwrap_err();
        assert!(error.to_string().contains("/nowhere"), "{error}");
    }
}
