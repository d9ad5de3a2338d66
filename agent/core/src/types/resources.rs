//! What a node has, and what an instance takes of it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};

use litemap::LiteMap;
use serde::{Deserialize, Serialize, Serializer};

/// Labels of a node, and what a VM requires of them; both keys and values are free text.
///
/// A sorted vector: a B-tree's smallest node has room for eleven, and most VMs have none or one. It is written and read as
/// a map, and not as `LiteMap` does it, which makes an empty array of none, and room for as many as somebody says.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(from = "BTreeMap<String, String>")]
pub struct Labels(LiteMap<String, String>);

impl Labels {
    pub fn new() -> Self {
        Self::default()
    }
}
impl Deref for Labels {
    type Target = LiteMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}
impl DerefMut for Labels {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}
impl FromIterator<(String, String)> for Labels {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(labels: T) -> Self {
        Self(labels.into_iter().collect())
    }
}
impl From<BTreeMap<String, String>> for Labels {
    fn from(labels: BTreeMap<String, String>) -> Self {
        labels.into_iter().collect()
    }
}
impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter())
    }
}

/// An amount of what a node has and an instance takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Resources {
    /// Virtual CPUs; one of an instance takes one of a node.
    pub cpus: u32,
    pub memory_mib: u64,
    pub disk_mib: u64,
}

impl Resources {
    /// The sum, or nothing when a part overflows.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        Some(Self {
            cpus: self.cpus.checked_add(other.cpus)?,
            memory_mib: self.memory_mib.checked_add(other.memory_mib)?,
            disk_mib: self.disk_mib.checked_add(other.disk_mib)?,
        })
    }
    /// What is left after `other` is taken; a part that has less than that is left empty.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self {
            cpus: self.cpus.saturating_sub(other.cpus),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            disk_mib: self.disk_mib.saturating_sub(other.disk_mib),
        }
    }
    /// The larger of each part: what must be free to hold one and then the other.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            cpus: self.cpus.max(other.cpus),
            memory_mib: self.memory_mib.max(other.memory_mib),
            disk_mib: self.disk_mib.max(other.disk_mib),
        }
    }
    pub fn fits_in(self, room: Self) -> bool {
        self.cpus <= room.cpus && self.memory_mib <= room.memory_mib && self.disk_mib <= room.disk_mib
    }
}

/// What runs the guest; the names are microvm.nix's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hypervisor {
    Qemu,
    CloudHypervisor,
    Firecracker,
    Crosvm,
    Kvmtool,
    Stratovirt,
    Alioth,
}

impl Hypervisor {
    pub const ALL: [Self; 7] = [
        Self::Qemu,
        Self::CloudHypervisor,
        Self::Firecracker,
        Self::Crosvm,
        Self::Kvmtool,
        Self::Stratovirt,
        Self::Alioth,
    ];

    /// What the hypervisor itself may take beside the guest's memory, in MiB, where the manifest doesn't say.
    ///
    /// Part of the placement and of the unit's `MemoryMax`. Measured for QEMU (its page tables, device buffers, and a
    /// translation cache of up to 75 MiB without KVM); a generous round number for the others.
    pub const fn memory_overhead_mib(self) -> u64 {
        match self {
            Self::Qemu => 128,
            Self::CloudHypervisor | Self::Crosvm => 64,
            Self::Firecracker | Self::Kvmtool | Self::Stratovirt | Self::Alioth => 32,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Firecracker => "firecracker",
            Self::Crosvm => "crosvm",
            Self::Kvmtool => "kvmtool",
            Self::Stratovirt => "stratovirt",
            Self::Alioth => "alioth",
        }
    }
}
impl fmt::Display for Hypervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
