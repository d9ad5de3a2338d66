//! The three servers of a cluster, which run nothing themselves.

use std::path::Path;

use blixard::api::proto::{ManifestRequest, StatusReply};
use blixard::cli;
use blixard::identity::NodeIdentity;
use rustix::process::Pid;

use crate::member::Member;
use crate::process::Process;

const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];

pub struct Servers {
    pub members: [Member; 3],
    /// With which others call as one of them does.
    pub identity: NodeIdentity,
}

impl Servers {
    /// A new cluster that has a leader, and leases on these terms, as in a manifest.
    pub async fn start(dir: &Path, lease: &str) -> Self {
        let mut members = Member::write(dir, NAMES);
        let start = |member: &mut Member| member.process = Some(Process::start(member.command(), &member.log()));
        let identity = Member::found(&mut members, start).await;
        let servers = Self { members, identity };
        servers.declare(&format!(r#"{{ "version": 1, "cluster": {{ "lease": {lease} }}, "vms": {{}} }}"#)).await;
        servers
    }

    /// Has the cluster take this manifest.
    pub async fn declare(&self, manifest: &str) {
        let client = cli::connect(&self.members[0].dir.join("run/api.sock")).await;
        let request = ManifestRequest { json: manifest.into(), from: "the bench".to_owned() };
        let applied = client.expect("a server listens").apply(request).await.expect("a manifest can be applied");
        assert_eq!(applied.into_inner().result, "applied", "it is another one each time");
    }

    /// Which one leads, once one does.
    pub async fn leader(&self) -> usize {
        let leads = |status: &StatusReply| status.cluster.as_ref().map(|cluster| cluster.leader.clone());
        let has_leader = |status: &StatusReply| leads(status).is_some_and(|leader| !leader.is_empty());
        let leader = leads(&self.members[0].sees("a leader", has_leader).await);
        let is_leader = |member: &Member| Some(member.name) == leader.as_deref();
        self.members.iter().position(is_leader).expect("a server leads")
    }
}

pub fn pid(member: &Member) -> Pid {
    member.process.as_ref().expect("it runs").pid()
}
