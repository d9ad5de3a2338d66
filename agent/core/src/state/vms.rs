//! VMs: whose they are, those of the command line, and what a change of one does to its instances.

use serde::Deserialize;

use super::packed::Packed;
use super::{Instance, Owner, Refusal, State, Vm, refuse};
use crate::command::{Presence, Reply};
use crate::manifest::{Manifest, VmSpec};
use crate::types::{Generation, Hash, InstanceId, StorePath, Timestamp, VmName};

/// Most VMs, so that nobody can fill the memory by making one after the other.
pub const MAX_VMS: usize = 200_000;

/// Why a manifest can't be the head: it asks for what is the command line's.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Conflict {
    #[error(
        "the manifest declares {name}, which was made with the command line and is left alone: \
         remove it with `blixard vm rm {name}`, or declare the VM under another name"
    )]
    Name { name: VmName },
    #[error(
        "the manifest declares {name} with {runner}, which {owner} has, made with the command line: a runner has one \
         name, tap and socket; remove {owner} with `blixard vm rm {owner}`, or give {name} a runner of its own"
    )]
    Runner { name: VmName, runner: StorePath, owner: VmName },
}

/// Half of the SHA-256 of a runner's path.
pub(super) type RunnerKey = u128;

/// The first fields of a [`Vm`] and of its spec.
#[derive(Deserialize)]
pub(super) struct Head<'a> {
    pub owner: Owner,
    pub running: bool,
    #[serde(borrow)]
    pub runners: Vec<&'a str>,
}

impl State {
    /// As much of a VM as most questions are about.
    pub(super) fn vm_head(&self, name: &VmName) -> Option<Head<'_>> {
        self.vms.get(name).map(Packed::head)
    }

    /// Whether there is, or will be, such an instance.
    pub(super) fn is_declared(&self, id: &InstanceId) -> bool {
        self.vm_head(&id.vm).is_some_and(|vm| vm.has(id.replica))
    }

    /// Whether this instance is to run.
    fn is_desired(&self, id: &InstanceId) -> bool {
        self.vm_head(&id.vm).is_some_and(|vm| vm.runs(id.replica))
    }

    /// The VMs that a manifest has declared.
    pub(super) fn of_manifest(&self) -> impl Iterator<Item = (&VmName, &Packed<Vm>)> {
        self.vms.iter().filter(|(_, vm)| vm.head::<Head>().owner == Owner::Manifest)
    }

    /// Checks that a manifest asks for nothing that is the command line's.
    ///
    /// # Errors
    /// The first VM that does.
    pub fn check_owners(&self, manifest: &Manifest) -> Result<(), Conflict> {
        let of_cli = |name: &VmName| self.vm_head(name).is_some_and(|vm| vm.owner == Owner::Cli);
        for (name, spec) in &manifest.vms {
            if of_cli(name) {
                return Err(Conflict::Name { name: name.clone() });
            }
            for runner in &spec.runners {
                if let Some(owner) = self.runners.get(&key_of(runner.as_str())).filter(|owner| of_cli(owner)) {
                    return Err(Conflict::Runner { name: name.clone(), runner: runner.clone(), owner: owner.clone() });
                }
            }
        }
        Ok(())
    }

    pub(super) fn put_vm(
        &mut self,
        name: &VmName,
        spec: &VmSpec,
        running: bool,
        must: Option<Presence>,
        at: Timestamp,
    ) -> Result<Reply, Refusal> {
        Manifest::new([(name.clone(), spec.clone())].into()).map_err(|error| Refusal(error.of_one_vm()))?;
        match (self.vm_head(name), must) {
            (Some(vm), _) if vm.owner == Owner::Manifest => return Err(not_of_cli(name)),
            (Some(_), Some(Presence::Absent)) => {
                return refuse(format!(
                    "there is a VM {name} already: see `blixard vm show {name}`, and take another name, \
                     or remove that one first with `blixard vm rm {name}`"
                ));
            }
            (None, Some(Presence::Present)) => return Err(unknown(name)),
            (None, _) if self.vms.len() >= MAX_VMS => {
                return refuse(format!("there are {MAX_VMS} VMs, which is the most: remove one first"));
            }
            _ => {}
        }
        let taken = spec.runners.iter().find_map(|runner| {
            let owner = self.runners.get(&key_of(runner.as_str())).filter(|owner| *owner != name)?;
            Some((runner, owner))
        });
        if let Some((runner, owner)) = taken {
            return refuse(format!(
                "{runner} is the runner of {owner}: a runner has one name, tap and socket, so {name} needs its own"
            ));
        }
        self.set_vm(name, Some(&Vm { owner: Owner::Cli, running, spec: spec.clone() }), at);
        Ok(Reply::Done)
    }

    pub(super) fn set_vm_running(&mut self, name: &VmName, running: bool, at: Timestamp) -> Result<Reply, Refusal> {
        if self.check_of_cli(name)?.running != running {
            let vm = self.vm(name).map(|vm| Vm { running, ..vm });
            self.set_vm(name, vm.as_ref(), at);
        }
        Ok(Reply::Done)
    }

    pub(super) fn remove_vm(&mut self, name: &VmName, at: Timestamp) -> Result<Reply, Refusal> {
        self.check_of_cli(name)?;
        self.set_vm(name, None, at);
        Ok(Reply::Done)
    }

    fn check_of_cli(&self, name: &VmName) -> Result<Head<'_>, Refusal> {
        match self.vm_head(name) {
            None => Err(unknown(name)),
            Some(vm) if vm.owner == Owner::Manifest => Err(not_of_cli(name)),
            Some(vm) => Ok(vm),
        }
    }

    /// The one place where a VM comes, changes or goes. It looks at this VM's instances only, however many others
    /// there are.
    pub(super) fn set_vm(&mut self, name: &VmName, vm: Option<&Vm>, at: Timestamp) {
        let before = match vm {
            Some(vm) => self.vms.insert(name.clone(), Packed::of(vm)),
            None => self.vms.remove(name),
        };
        self.dirty.vms.insert(name.clone());
        let before = before.as_ref().map(Packed::head::<Head>);
        for runner in before.iter().flat_map(|vm| &vm.runners) {
            let key = key_of(runner);
            // Another VM may have it by now, when a manifest has passed it on.
            if self.runners.get(&key) == Some(name) {
                self.runners.remove(&key);
            }
        }
        for runner in vm.iter().flat_map(|vm| &vm.spec.runners) {
            self.runners.insert(key_of(runner.as_str()), name.clone());
        }
        for id in vm.iter().flat_map(|vm| vm.spec.instances(name)) {
            if !self.instances.contains_key(&id) {
                let generation = self.counters.generation_floor;
                self.instances.insert(id.clone(), Instance { generation, ..Instance::default() });
                if generation > Generation(0) {
                    self.dirty.instances.insert(id);
                }
            }
        }
        let own = self.instances_of(name).map(|(id, _)| id);
        for id in own.filter(|id| !self.is_desired(id)).cloned().collect::<Vec<_>>() {
            self.stop_instance(&id, at);
        }
    }
}

impl Head<'_> {
    fn has(&self, replica: u16) -> bool {
        usize::from(replica) < self.runners.len()
    }

    /// Whether this replica is to run.
    pub(super) fn runs(&self, replica: u16) -> bool {
        self.running && self.has(replica)
    }

    /// Each of its runners, with its name.
    pub(super) fn owned_by(&self, name: &VmName) -> impl Iterator<Item = (RunnerKey, VmName)> {
        self.runners.iter().map(|runner| (key_of(runner), name.clone()))
    }

    pub(super) fn replicas(&self) -> impl Iterator<Item = u16> {
        0..u16::try_from(self.runners.len()).unwrap_or(u16::MAX)
    }
}

fn key_of(runner: &str) -> RunnerKey {
    Hash::of(runner.as_bytes()).half()
}

fn unknown(name: &VmName) -> Refusal {
    Refusal(format!("there is no VM {name}: see `blixard vm ls`"))
}

fn not_of_cli(name: &VmName) -> Refusal {
    Refusal(format!(
        "the manifest declares {name}, so the manifest alone decides about it: change it there and apply that, \
         or take another name"
    ))
}
