//! Three members of Blixard, and clients that call them as members call each other.

use std::path::Path;
use std::time::Duration;

use blixard::api::proto::StatusReply;
use blixard::identity::NodeIdentity;
use blixard_core::command::{Reply, Request};
use blixard_core::state::WINDOW;
use blixard_core::types::ClientId;
use tonic::transport::Channel;

use crate::channel::connect;
use crate::load::{BYTES, Writer};
use crate::member::{Member, credentials, encode, forward, put};
use crate::process::Process;
use crate::slow;

pub struct Blixard {
    members: [Member; 3],
    identity: NodeIdentity,
}

impl Blixard {
    /// A new cluster that has a leader.
    pub async fn start(dir: &Path, slow: Option<Duration>) -> Self {
        let mut members = Member::write(dir, ["alpha", "beta", "gamma"]);
        let start = |member: &mut Member| member.process = Some(slow::start(member.command(), &member.log(), slow));
        let identity = Member::found(&mut members, start).await;
        Self { members, identity }
    }

    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        self.members.iter().filter_map(|member| member.process.as_ref())
    }

    /// Clients of the leader, over so many connections.
    pub async fn writers(&self, clients: usize, connections: usize) -> Vec<Client> {
        let leader = |status: &StatusReply| status.cluster.as_ref().map(|cluster| cluster.leader.clone());
        let status =
            self.members[0].sees("a leader", |status| leader(status).is_some_and(|name| !name.is_empty())).await;
        let of_leader = self.members.iter().find(|member| leader(&status).is_some_and(|name| name == member.name));
        let address = of_leader.expect("a member leads").address;
        let tls = credentials(&self.identity);
        let channels: Vec<_> = (0..connections).map(|_| connect(address, tls.clone())).collect();
        let client = |number: usize| Client {
            channel: channels[number % connections].clone(),
            request: Request {
                client: ClientId(u128::from_be_bytes(blixard::identity::random())),
                sequence: 0,
                answered: 0,
                until: WINDOW,
            },
        };
        (0..clients).map(client).collect()
    }

    pub fn stop(self) {
        for process in self.members.into_iter().filter_map(|member| member.process) {
            process.stop();
        }
    }
}

/// A client of Blixard.
pub struct Client {
    channel: Channel,
    request: Request,
}

impl Writer for Client {
    async fn write(&mut self, key: u32) -> Result<(), String> {
        self.request.sequence += 1;
        self.request.answered = self.request.sequence;
        let command = encode(self.request, put(&format!("vm{key:05}"), None));
        assert!(command.len() >= BYTES, "{} bytes", command.len());
        let answer = forward(&self.channel, command).await?;
        self.request.until = answer.index + WINDOW;
        if answer.reply == Reply::Done { Ok(()) } else { Err(format!("{:?}", answer.reply)) }
    }
}
