//! (state, manifest) → what making the manifest head would change, per instance and why.

use std::fmt;

use crate::manifest::Manifest;
use crate::schedule::{Change, Rooms};
use crate::state::{Conflict, Owner, State};
use crate::types::{InstanceId, NodeId};

/// What becomes of one instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Planned {
    pub instance: InstanceId,
    pub action: PlannedAction,
    pub why: String,
}

/// The smallest thing that does it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlannedAction {
    Start,
    /// Limits or policy change while it runs.
    Update,
    Restart,
    /// Stopped where it is, then started on another node.
    Move,
    /// Left as it is: its node can't take the change, and its volumes are there.
    Hold,
    Stop,
}

impl PlannedAction {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Update => "update",
            Self::Restart => "restart",
            Self::Move => "move",
            Self::Hold => "hold",
            Self::Stop => "stop",
        }
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.action.as_str(), self.instance, self.why)
    }
}

/// What would change, in the order of the instances' names; what stays as it is isn't listed, nor what the manifest
/// doesn't own.
///
/// # Errors
/// What applying the manifest is refused for.
pub fn plan(state: &State, manifest: &Manifest) -> Result<Vec<Planned>, Conflict> {
    state.check_owners(manifest)?;
    let rooms = Rooms::new(state);
    let mut planned = Vec::new();
    let mut add = |instance: &InstanceId, action, why: String| {
        planned.push(Planned { instance: instance.clone(), action, why });
    };
    for id in manifest.instances() {
        let spec = &manifest.vms[&id.vm];
        let placement = state.instances().get(&id).and_then(|instance| instance.placement.as_ref());
        let Some(placement) = placement else {
            match state.desired(&id) {
                None => add(&id, PlannedAction::Start, "it is new".to_owned()),
                Some(before) if before == *spec => {}
                Some(_) => {
                    add(&id, PlannedAction::Start, "it waits for a node, and its declaration changes".to_owned());
                }
            }
            continue;
        };
        if placement.stopping {
            if state.desired(&id).is_none() {
                add(&id, PlannedAction::Start, "it is being stopped, and is declared again".to_owned());
            }
            continue;
        }
        let differences = || match state.desired(&id).map(|before| before.differences(spec, Some(id.replica))) {
            None => "it is declared again".to_owned(),
            Some(parts) if parts.is_empty() => "its node is behind its declaration".to_owned(),
            Some(parts) => parts.join(", "),
        };
        match rooms.change(state, &id, placement, spec) {
            None => {}
            Some(Change::InPlace) => add(&id, PlannedAction::Update, differences()),
            Some(Change::Restart) => add(&id, PlannedAction::Restart, differences()),
            Some(Change::Move(obstacle)) => {
                add(
                    &id,
                    PlannedAction::Move,
                    format!("{}; {}: {obstacle}", differences(), name_of(state, placement.node)),
                );
            }
            Some(Change::Held(obstacle)) => {
                let node = name_of(state, placement.node);
                let why = format!("{}; {node}, where its volumes are: {obstacle}", differences());
                add(&id, PlannedAction::Hold, why);
            }
        }
    }
    for id in state.instances().keys() {
        let declared = manifest.vms.get(&id.vm).is_some_and(|spec| usize::from(id.replica) < spec.runners.len());
        if !declared && state.declared(id).is_some_and(|vm| vm.owner == Owner::Manifest) {
            add(id, PlannedAction::Stop, "it is no longer declared".to_owned());
        }
    }
    planned.sort_by(|a, b| a.instance.cmp(&b.instance));
    Ok(planned)
}

/// All that would change, the cluster and its hosts first, a line each; or why nothing would.
pub fn lines(state: &State, manifest: &Manifest) -> Vec<String> {
    match plan(state, manifest) {
        Ok(planned) => {
            let settings = state.other_settings(manifest).into_iter();
            settings.chain(planned.iter().map(ToString::to_string)).collect()
        }
        Err(conflict) => vec![conflict.to_string()],
    }
}

fn name_of(state: &State, node: NodeId) -> &str {
    state.nodes().get(&node).map_or("its node", |node| node.name.as_str())
}

#[cfg(test)]
mod tests;
