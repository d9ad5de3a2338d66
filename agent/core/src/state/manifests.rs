//! The history of manifests: which one is head, what a head changes, and what is held for a person to decide.

use std::collections::BTreeMap;

use super::nodes::not_a_member;
use super::{HeadRecord, Held, OfCluster, OfNode, Owner, Refusal, State, Vm, refuse};
use crate::command::{ManifestReply, Origin, Reply};
use crate::manifest::{Manifest, VmSpec, differences, nodes};
use crate::types::{NodeId, Timestamp};

/// Heads that are remembered, and so known when a host offers one again.
const MAX_HISTORY: usize = 256;
/// Heads that are kept whole, so that one can be made head again.
const MAX_WHOLE: usize = 8;
/// Lines of a head's diff that are kept.
const MAX_DIFF_LINES: usize = 100;
/// Longest text in an event about who made a manifest the head, in characters; the rest is cut off.
const MAX_WHO_CHARS: usize = 100;

impl State {
    pub(super) fn offer_manifest(
        &mut self,
        index: u64,
        manifest: &Manifest,
        from: &Origin,
        at: Timestamp,
    ) -> Result<Reply, Refusal> {
        manifest.validate().map_err(|error| Refusal(error.to_string()))?;
        let hash = manifest.hash();
        let carrier = match from {
            Origin::Host { node, .. } if !self.nodes.contains_key(node) => return Err(not_a_member(*node)),
            Origin::Host { node, .. } => Some(*node),
            Origin::Person(_) => None,
        };
        if self.head().is_some_and(|head| head.hash == hash) {
            if let Some(node) = carrier {
                self.unhold(node);
            }
            return Ok(Reply::Manifest { result: ManifestReply::Equal, hash });
        }
        let seen = self.manifests.values().any(|record| record.hash == hash);
        let explicit = match from {
            Origin::Host { activated, authority, .. } => *authority && *activated,
            Origin::Person(_) => true,
        };
        if let (true, false, Some(node)) = (seen, explicit, carrier) {
            self.held.insert(node, Held { manifest: manifest.clone(), since: at });
            self.dirty.held.insert(node);
            self.happened_on(node, OfNode::Held { manifest: hash });
            return Ok(Reply::Manifest { result: ManifestReply::Held, hash });
        }
        let reply = self.set_head(index, manifest, from.clone(), at)?;
        if let Some(node) = carrier {
            self.unhold(node);
        }
        Ok(reply)
    }

    pub(super) fn accept_manifest(&mut self, index: u64, node: NodeId, at: Timestamp) -> Result<Reply, Refusal> {
        let Some(held) = self.held.get(&node).cloned() else {
            return refuse(format!("nothing is held for node {node}"));
        };
        let from = Origin::Host { node, activated: true, authority: false };
        self.set_head(index, &held.manifest, from, at)
    }

    pub(super) fn roll_back_manifest(&mut self, index: u64, from: &str, at: Timestamp) -> Result<Reply, Refusal> {
        let head = self.head().map(|head| head.hash);
        let earlier = self.manifests.values().rev().find(|record| Some(record.hash) != head);
        let Some(manifest) = earlier.and_then(|record| record.manifest.clone()) else {
            return refuse("there is no earlier manifest to go back to");
        };
        self.set_head(index, &manifest, Origin::Person(from.to_owned()), at)
    }

    /// What it declares otherwise than the head of the cluster and its hosts, a line each.
    pub fn other_settings(&self, manifest: &Manifest) -> Vec<String> {
        let mut lines = self.settings().differences(&manifest.cluster);
        lines.extend(nodes::differences(self.declared_nodes(), &manifest.nodes));
        lines
    }

    /// Who it was from, and whether it came of itself when a host booted.
    pub fn who_offered(&self, from: &Origin) -> String {
        match from {
            Origin::Host { node, activated: false, .. } => format!("{}, at boot", self.name_of(*node)),
            Origin::Host { node, .. } => self.name_of(*node),
            Origin::Person(who) => who.clone(),
        }
    }

    /// Also forgets that it is held anywhere.
    fn set_head(&mut self, index: u64, manifest: &Manifest, from: Origin, at: Timestamp) -> Result<Reply, Refusal> {
        self.check_owners(manifest).map_err(|conflict| Refusal(conflict.to_string()))?;
        let hash = manifest.hash();
        let before = self.of_manifest().map(|(name, vm)| (name.clone(), vm.value().spec)).collect();
        let mut diff = self.other_settings(manifest);
        diff.extend(differences(&before, &manifest.vms));
        diff.truncate(MAX_DIFF_LINES);
        self.replace_vms(manifest, at);
        let who = self.who_offered(&from).chars().take(MAX_WHO_CHARS).collect();
        self.happened(OfCluster::Head { manifest: hash, from: who });
        let record = HeadRecord { hash, at, from, diff, manifest: Some(manifest.clone()) };
        self.manifests.insert(index, record);
        self.dirty.manifests.insert(index);
        self.trim_history();
        let equal = self.held.iter().filter(|(_, held)| held.manifest.hash() == hash).map(|(node, _)| *node);
        for node in equal.collect::<Vec<_>>() {
            self.unhold(node);
        }
        Ok(Reply::Manifest { result: ManifestReply::Applied, hash })
    }

    /// Only what a manifest owns; it has been checked that the manifest names nothing else.
    fn replace_vms(&mut self, manifest: &Manifest, at: Timestamp) {
        let declared = |spec: &VmSpec| Vm { owner: Owner::Manifest, running: true, spec: spec.clone() };
        let gone = self.of_manifest().map(|(name, _)| name).filter(|name| !manifest.vms.contains_key(name));
        let mut changes: BTreeMap<_, _> = gone.map(|name| (name.clone(), None)).collect();
        for (name, spec) in &manifest.vms {
            if self.vm(name).is_none_or(|vm| vm.spec != *spec) {
                changes.insert(name.clone(), Some(declared(spec)));
            }
        }
        for (name, vm) in changes {
            self.set_vm(&name, vm.as_ref(), at);
        }
    }

    fn trim_history(&mut self) {
        while self.manifests.len() > MAX_HISTORY {
            let (oldest, _) = self.manifests.pop_first().expect("it is longer than that");
            self.dirty.manifests.insert(oldest);
        }
        let whole = self.manifests.iter().rev().filter(|(_, record)| record.manifest.is_some());
        for index in whole.skip(MAX_WHOLE).map(|(index, _)| *index).collect::<Vec<_>>() {
            self.manifests.get_mut(&index).expect("it was found there").manifest = None;
            self.dirty.manifests.insert(index);
        }
    }

    fn unhold(&mut self, node: NodeId) {
        if self.held.remove(&node).is_some() {
            self.dirty.held.insert(node);
        }
    }
}
