//! The verbs about join tokens.

use std::time::Duration;

use blixard_core::types::{NodeRole, TokenId};
use clap::Subcommand;

use super::ask::{AskError, Asked, look, print};
use super::client::connect;
use super::duration::duration;
use super::{Reading, Socket, show};
use crate::api::proto;

#[derive(Subcommand, Debug)]
pub enum TokenVerb {
    /// Make a token, and print it: with it one host can join the cluster, once, instead of by the cluster secret
    ///
    /// Put it into the file that `cluster.token_file` names on that host. It can't be shown again.
    Create {
        /// How long it is good for, such as 30m, 1h or 7d; 30 days at most
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
        ttl: Duration,
        /// What the host is that joins with it, whatever its configuration says: auto, server or worker
        #[arg(long)]
        role: Option<NodeRole>,
        #[command(flatten)]
        socket: Socket,
    },
    /// List the tokens that have not expired, and what became of them
    Ls {
        #[command(flatten)]
        reading: Reading,
    },
    /// Let nobody join with a token any more
    Revoke {
        /// As `blixard token ls` shows it
        id: TokenId,
        #[command(flatten)]
        socket: Socket,
    },
}

pub async fn ask(verb: TokenVerb) -> Asked {
    match verb {
        TokenVerb::Create { ttl, role, socket } => {
            let mut client = connect(&socket.socket).await.map_err(AskError::Connect)?;
            let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
            let request =
                proto::CreateTokenRequest { ttl_ms, role: role.map_or_else(String::new, |role| role.to_string()) };
            let reply = client.create_token(request).await.map_err(AskError::Refused)?.into_inner();
            print(&format!("{}\n", reply.token))
        }
        TokenVerb::Ls { reading } => {
            let mut client = connect(reading.path()).await.map_err(AskError::Connect)?;
            let request = proto::ListTokensRequest { freshness: reading.freshness().into() };
            let reply = client.list_tokens(request).await.map_err(AskError::Refused)?;
            print(&show::tokens(reply.get_ref(), look()))
        }
        TokenVerb::Revoke { id, socket } => {
            let mut client = connect(&socket.socket).await.map_err(AskError::Connect)?;
            let request = proto::RevokeTokenRequest { id: id.to_string() };
            client.revoke_token(request).await.map_err(AskError::Refused)?;
            print(&format!("nobody joins with {id} any more\n"))
        }
    }
}
