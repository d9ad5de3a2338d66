//! manifest.json → `Manifest`: what the cluster is to run, validated, with the JSON path in every error.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::types::{
    Failover, Generation, Hash, Hypervisor, InstanceId, Labels, NodeName, Priority, Resources, RestartPolicy,
    StorePath, VmName,
};
use crate::unit::VmUnit;

mod cluster;
pub mod nodes;

pub use cluster::{ClusterSettings, MAX_SERVERS};
pub use nodes::DeclaredNode;

/// The one version of the format that this agent reads.
pub const VERSION: u32 = 1;
/// Largest manifest file, in bytes: it travels in one log entry.
pub const MAX_BYTES: usize = 4 << 20;
/// Most replicas of one VM.
pub const MAX_REPLICAS: usize = 10_000;

/// What the cluster is to run; the whole of it, so what isn't in it is removed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    version: u32,
    #[serde(default)]
    pub cluster: ClusterSettings,
    #[serde(deserialize_with = "unique_keys")]
    pub vms: BTreeMap<VmName, VmSpec>,
    #[serde(default, deserialize_with = "unique_keys")]
    pub nodes: BTreeMap<NodeName, DeclaredNode>,
}

/// One declared VM. Its fields are documented in docs/formats.md.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VmSpec {
    /// One runner per replica, in the replicas' order: names, taps and sockets are baked into a runner.
    pub runners: Vec<StorePath>,
    /// Nix's name of the machine type, such as `x86_64-linux`.
    pub system: String,
    pub hypervisor: Hypervisor,
    pub vcpus: u32,
    /// The guest's memory; what the hypervisor takes comes on top.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: u64,
    /// Default: [`Hypervisor::memory_overhead_mib`].
    #[serde(default, rename = "memoryOverheadMiB")]
    pub memory_overhead_mib: Option<u64>,
    #[serde(default, rename = "diskMiB")]
    pub disk_mib: u64,
    /// Whether a node without `/dev/kvm` won't do.
    #[serde(default = "yes")]
    pub kvm: bool,
    /// Labels that a node must have, with these values.
    #[serde(default, deserialize_with = "unique_keys")]
    pub requires: Labels,
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Whether the runner itself says READY=1 once the guest is up.
    #[serde(default)]
    pub notifies: bool,
    /// What is asked for; a placement can be manual for other reasons.
    #[serde(default)]
    pub failover: Failover,
    #[serde(default)]
    pub priority: Priority,
    /// How many replicas run at least while nodes are drained; all but one where nothing is said.
    #[serde(default)]
    pub min_available: Option<u16>,
}

/// What a node must be, apart from having room.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Constraints {
    pub system: String,
    pub hypervisor: Hypervisor,
    pub kvm: bool,
    pub requires: Labels,
}

/// Why a file is not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest has {bytes} bytes; at most {MAX_BYTES} are accepted: split the VMs over more clusters")]
    TooLarge { bytes: usize },
    #[error("the manifest has version {found}; this agent reads version {VERSION}: upgrade the agent or the module")]
    Version { found: u64 },
    #[error("the manifest is wrong at {path}: {reason}")]
    Invalid { path: String, reason: String },
}

impl ManifestError {
    /// The text for one VM that comes by itself, without a manifest.
    pub fn of_one_vm(&self) -> String {
        match self {
            Self::Invalid { path, reason } => format!("the VM is wrong at {path}: {reason}"),
            _ => self.to_string(),
        }
    }
}

impl Manifest {
    /// Parses and validates a manifest file.
    ///
    /// # Errors
    /// Whatever is wrong first, with its JSON path.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Version {
            version: u64,
        }
        if json.len() > MAX_BYTES {
            return Err(ManifestError::TooLarge { bytes: json.len() });
        }
        let version: Version = from_json(json)?;
        if version.version != u64::from(VERSION) {
            return Err(ManifestError::Version { found: version.version });
        }
        let manifest: Self = from_json(json)?;
        manifest.validate()?;
        Ok(manifest)
    }

    /// A manifest of these VMs, which must be valid.
    ///
    /// # Errors
    /// As [`Manifest::parse`].
    pub fn new(vms: BTreeMap<VmName, VmSpec>) -> Result<Self, ManifestError> {
        let manifest = Self { version: VERSION, vms, ..Self::default() };
        manifest.validate()?;
        Ok(manifest)
    }

    /// The same for equal content, whatever the file's order and white space.
    pub fn hash(&self) -> Hash {
        Hash::of(&postcard::to_stdvec(self).expect("a manifest has no part that postcard refuses"))
    }

    pub fn instances(&self) -> impl Iterator<Item = InstanceId> {
        self.vms.iter().flat_map(|(vm, spec)| spec.instances(vm))
    }

    /// Checks what the types can't; `apply` runs it too, since a command may come from anywhere.
    ///
    /// # Errors
    /// [`ManifestError::Invalid`] with the path of the first wrong value.
    pub fn validate(&self) -> Result<(), ManifestError> {
        self.cluster.validate()?;
        nodes::validate(&self.nodes)?;
        let mut total = Resources::default();
        let mut owners: BTreeMap<&StorePath, String> = BTreeMap::new();
        for (vm, spec) in &self.vms {
            spec.validate(vm)?;
            for (replica, runner) in spec.runners.iter().enumerate() {
                let path = format!("vms.{vm}.runners[{replica}]");
                let sum = total.checked_add(spec.request());
                total = sum.ok_or_else(|| invalid(&path, "the resources of all VMs together overflow"))?;
                if let Some(first) = owners.insert(runner, path.clone()) {
                    return Err(invalid(
                        &path,
                        format!(
                            "{runner} is also {first}: a runner has one name, tap and socket, so each replica needs its own"
                        ),
                    ));
                }
            }
        }
        Ok(())
    }
}

impl VmSpec {
    /// Parses the JSON of one VM as it would be in a manifest; whether it is valid there, the state says.
    ///
    /// # Errors
    /// [`ManifestError::Invalid`] with the path of what it can't be.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        from_json(json)
    }

    pub fn instances(&self, vm: &VmName) -> impl Iterator<Item = InstanceId> {
        let replicas = u16::try_from(self.runners.len()).unwrap_or(u16::MAX);
        (0..replicas).map(move |replica| InstanceId { vm: vm.clone(), replica })
    }

    /// What one replica takes of a node; its memory is the unit's `MemoryMax`.
    pub fn request(&self) -> Resources {
        let overhead = self.memory_overhead_mib.unwrap_or(self.hypervisor.memory_overhead_mib());
        Resources { cpus: self.vcpus, memory_mib: self.memory_mib.saturating_add(overhead), disk_mib: self.disk_mib }
    }

    /// How many replicas may be away at once because their nodes are emptied; at least one.
    pub fn may_be_away(&self) -> usize {
        self.min_available.map_or(1, |least| self.runners.len().saturating_sub(least.into()).max(1))
    }

    pub fn constraints(&self) -> Constraints {
        Constraints {
            system: self.system.clone(),
            hypervisor: self.hypervisor,
            kvm: self.kvm,
            requires: self.requires.clone(),
        }
    }

    /// What the unit of this replica is to run, placed as this; nothing if there is no such replica.
    pub fn unit(&self, instance: &InstanceId, generation: Generation, failover: Failover) -> Option<VmUnit> {
        Some(VmUnit {
            instance: instance.clone(),
            generation,
            runner: self.runners.get(usize::from(instance.replica))?.clone(),
            restart: self.restart,
            failover,
            notifies: self.notifies,
            cpus: self.vcpus,
            memory_max_mib: self.request().memory_mib,
        })
    }

    /// What is declared otherwise in `after`, a few words each; of the runners only this replica's, where one is named.
    pub fn differences(&self, after: &Self, replica: Option<u16>) -> Vec<String> {
        let mut parts = Vec::new();
        match replica.map(usize::from) {
            Some(replica) if self.runners.get(replica) != after.runners.get(replica) => {
                parts.push("another runner".to_owned());
            }
            None if self.runners.len() != after.runners.len() => {
                parts.push(format!("replicas {} → {}", self.runners.len(), after.runners.len()));
            }
            None if self.runners != after.runners => parts.push("other runners".to_owned()),
            _ => {}
        }
        if self.vcpus != after.vcpus {
            parts.push(format!("vCPUs {} → {}", self.vcpus, after.vcpus));
        }
        let (memory, memory_after) = (self.request().memory_mib, after.request().memory_mib);
        if memory != memory_after {
            parts.push(format!("memory {memory} → {memory_after} MiB"));
        }
        if self.disk_mib != after.disk_mib {
            parts.push(format!("disk {} → {} MiB", self.disk_mib, after.disk_mib));
        }
        if self.restart != after.restart || self.notifies != after.notifies {
            parts.push("another policy".to_owned());
        }
        if self.constraints() != after.constraints() {
            parts.push("other requirements".to_owned());
        }
        if self.failover != after.failover {
            parts.push(format!("failover {} → {}", self.failover, after.failover));
        }
        if self.priority != after.priority {
            parts.push(format!("priority {} → {}", self.priority, after.priority));
        }
        if self.min_available != after.min_available {
            let least = |spec: &Self| spec.runners.len() - spec.may_be_away();
            parts.push(format!("minimum available {} → {}", least(self), least(after)));
        }
        parts
    }

    fn validate(&self, vm: &VmName) -> Result<(), ManifestError> {
        let wrong = |field: &str, reason: &str| Err(invalid(&format!("vms.{vm}.{field}"), reason));
        if self.runners.is_empty() {
            return wrong("runners", "there is no runner: name one store path per replica");
        }
        if self.runners.len() > MAX_REPLICAS {
            return wrong("runners", &format!("{} runners; at most {MAX_REPLICAS}", self.runners.len()));
        }
        let machine = self.system.strip_suffix("-linux").unwrap_or_default();
        if machine.is_empty() || !machine.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return wrong("system", &format!("{:?} is not a Linux system such as x86_64-linux", self.system));
        }
        if self.vcpus == 0 {
            return wrong("vcpus", "0 vCPUs: a VM needs at least 1");
        }
        if self.memory_mib == 0 {
            return wrong("memoryMiB", "0 MiB: a VM needs memory");
        }
        let overhead = self.memory_overhead_mib.unwrap_or(self.hypervisor.memory_overhead_mib());
        if self.memory_mib.checked_add(overhead).is_none() {
            return wrong("memoryMiB", "the guest's memory and the hypervisor's overhead overflow together");
        }
        if let Some(least) = self.min_available.filter(|least| usize::from(*least) >= self.runners.len()) {
            let most = self.runners.len() - 1;
            return wrong(
                "minAvailable",
                &format!("{least} of {} replicas: at most {most}, or no host of theirs could be drained", most + 1),
            );
        }
        if let Some(key) = self.requires.keys().find(|key| key.is_empty() || key.len() > 253) {
            return wrong("requires", &format!("{key:?} is not a label's key: 1 to 253 bytes"));
        }
        Ok(())
    }
}

/// What `after` declares otherwise than `before`, a line a VM.
pub fn differences(before: &BTreeMap<VmName, VmSpec>, after: &BTreeMap<VmName, VmSpec>) -> Vec<String> {
    let added = after.iter().filter(|(name, _)| !before.contains_key(name)).map(|(name, _)| format!("add {name}"));
    let removed = before.keys().filter(|name| !after.contains_key(*name)).map(|name| format!("remove {name}"));
    let changed = before.iter().filter_map(|(name, spec)| {
        let parts = spec.differences(after.get(name)?, None);
        (!parts.is_empty()).then(|| format!("change {name}: {}", parts.join(", ")))
    });
    added.chain(removed).chain(changed).collect()
}

fn yes() -> bool {
    true
}

fn invalid(path: &str, reason: impl Into<String>) -> ManifestError {
    ManifestError::Invalid { path: path.to_owned(), reason: reason.into() }
}

/// The path of the manifest's outermost object.
const TOP: &str = "its top level";

fn from_json<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, ManifestError> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        match error.path().to_string().as_str() {
            "." => invalid(TOP, error.inner().to_string()),
            path => invalid(path, error.inner().to_string()),
        }
    })?;
    deserializer.end().map_err(|error| invalid(TOP, error.to_string()))?;
    Ok(value)
}

/// A map in which a key that appears twice is an error; JSON leaves that open, and the last one winning hides a VM.
fn unique_keys<'de, D, K, V, M>(deserializer: D) -> Result<M, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord + fmt::Display,
    V: Deserialize<'de>,
    M: FromIterator<(K, V)>,
{
    struct Unique<K, V>(PhantomData<(K, V)>);
    impl<'de, K, V> Visitor<'de> for Unique<K, V>
    where
        K: Deserialize<'de> + Ord + fmt::Display,
        V: Deserialize<'de>,
    {
        type Value = BTreeMap<K, V>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some(key) = access.next_key::<K>()? {
                if map.contains_key(&key) {
                    return Err(A::Error::custom(format!("{key} is named twice")));
                }
                map.insert(key, access.next_value()?);
            }
            Ok(map)
        }
    }
    Ok(deserializer.deserialize_map(Unique(PhantomData))?.into_iter().collect())
}

#[cfg(test)]
mod tests;
