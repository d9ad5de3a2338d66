//! What a manifest becomes, and which one of those that are held a person means.

use blixard_core::command::{Answer, Command, ManifestReply, Reply};
use blixard_core::types::NodeId;
use tonic::{Response, Status};

use super::{Api, proto};

impl Api {
    pub(super) async fn change_manifest(&self, command: Command) -> Result<Response<proto::ApplyReply>, Status> {
        let Answer { index, reply } = self.propose(command).await?;
        let (result, hash) = match reply {
            Reply::Manifest { result, hash } => (result, hash.to_string()),
            reply => return Err(Status::internal(format!("an answer of another kind: {reply:?}"))),
        };
        let result = match result {
            ManifestReply::Equal => "equal",
            ManifestReply::Applied => "applied",
            ManifestReply::Held => "held",
        };
        Ok(Response::new(proto::ApplyReply { hash, result: result.to_owned(), index }))
    }

    /// The host of this name whose manifest is held; without a name the only one.
    pub(super) async fn find_held(&self, name: &str) -> Result<NodeId, Status> {
        self.await_fresh(proto::Freshness::Linearizable).await?;
        let held: Vec<(NodeId, String)> = self.read(|state, _| {
            let name_of = |node: &NodeId| state.nodes().get(node).map(|member| member.name.to_string());
            state.held().keys().map(|node| (*node, name_of(node).unwrap_or_default())).collect()
        })?;
        let wanted = |(_, held): &&(NodeId, String)| name.is_empty() || *held == name;
        let mut matching = held.iter().filter(wanted);
        match (matching.next(), matching.next()) {
            (Some((node, _)), None) => Ok(*node),
            (Some(_), Some(_)) => {
                let names = held.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(", ");
                Err(Status::failed_precondition(format!("manifests of {names} are held: name one host")))
            }
            (None, _) if name.is_empty() => Err(Status::failed_precondition("no manifest is held")),
            (None, _) => Err(Status::failed_precondition(format!("no manifest of {name} is held"))),
        }
    }
}
