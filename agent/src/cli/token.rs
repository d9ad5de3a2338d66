//! The verbs about join tokens.

use std::time::Duration;

use blixard_core::types::{NodeRole, TokenId};
use clap::Subcommand;

use super::ask::{AskError, Asked, look, print};
use super::client::connect;
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

/// A number and its unit: `30m`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time: write a number and s, m, h or d, like 90m");
    let digits = text.len() - text.chars().next_back().map_or(0, char::len_utf8);
    let seconds = match &text[digits..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(wrong()),
    };
    let number: u32 = text[..digits].parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(u64::from(number) * seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_and_its_unit() {
        for (text, seconds) in [("90s", 90), ("30m", 1800), ("1h", 3600), ("7d", 604_800)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
        }
        for text in ["", "h", "1", "1 h", "-1h", "1w", "1.5h", "99999999999d", "1µ"] {
            assert!(duration(text).unwrap_err().contains("like 90m"), "{text}");
        }
    }
}
