//! What has happened, a line an event.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use blixard_core::types::NodeName;
use clap::Args;
use serde::Serialize;
use time::OffsetDateTime;

use super::Reading;
use super::ask::{AskError, Asked, write_out};
use super::client::connect;
use super::table::{Colour, paint, wants_colour};
use crate::api::proto;

/// How long whoever follows waits for an agent that has ended, as it does when it is upgraded, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(250);

#[derive(Args, Debug)]
pub struct EventsArgs {
    /// Go on with what happens from now on
    #[arg(long, short)]
    follow: bool,
    /// Only what is about this VM, or this instance of one, such as web-0
    #[arg(long, value_name = "NAME")]
    vm: Option<String>,
    /// Only what is about this node
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
    /// Only what came after the event of this number
    #[arg(long, value_name = "NUMBER", default_value_t = 0, hide_default_value = true)]
    after: u64,
    /// Print JSON, an event a line, in the shape that docs/formats.md documents
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: Reading,
}

/// The shape of an event as JSON. It is stable: fields are added, never renamed or removed.
#[derive(Serialize)]
struct Event<'a> {
    number: u64,
    index: u64,
    at: u64,
    kind: &'a str,
    instance: Option<&'a str>,
    node: Option<&'a str>,
    reason: Option<&'a str>,
}

/// Who follows reads on where it was, whichever agent answers next.
pub async fn events(args: &EventsArgs) -> Asked {
    let mut after = args.after;
    let mut heard: Option<Instant> = None;
    loop {
        let error = match read(args, &mut after, &mut heard).await {
            Err(error) if args.follow && error.is_unreachable() => error,
            ended => return ended,
        };
        match heard {
            Some(heard) if heard.elapsed() < PATIENCE => tokio::time::sleep(LOOK_EVERY).await,
            _ => return Err(error),
        }
    }
}

/// Prints what is behind the event `after`, which becomes the last that was looked at, until that ends.
async fn read(args: &EventsArgs, after: &mut u64, heard: &mut Option<Instant>) -> Asked {
    let EventsArgs { follow, vm, node, reading, .. } = args;
    let mut client = connect(reading.path()).await.map_err(AskError::Connect)?;
    let request = proto::EventsRequest {
        after: *after,
        follow: *follow,
        vm: vm.clone().unwrap_or_default(),
        node: node.as_ref().map(ToString::to_string).unwrap_or_default(),
        freshness: reading.freshness().into(),
    };
    let mut replies = client.events(request).await.map_err(AskError::Refused)?.into_inner();
    *heard = Some(Instant::now());
    while let Some(reply) = replies.message().await.map_err(AskError::Refused)? {
        *heard = Some(Instant::now());
        let lines: String = reply.events.iter().map(|event| line(event, args.json, wants_colour())).collect();
        *after = reply.until;
        if write_out(&lines)?.is_break() {
            return Ok(ExitCode::SUCCESS);
        }
    }
    if *follow { Err(AskError::Ended { path: reading.path().to_owned() }) } else { Ok(ExitCode::SUCCESS) }
}

fn line(event: &proto::Event, as_json: bool, coloured: bool) -> String {
    let proto::Event { number, index, at, kind, instance, node, reason } = event;
    if as_json {
        let some = |text| Some(text).filter(|text: &&str| !text.is_empty());
        let (instance, node, reason) = (some(instance), some(node), some(reason));
        let event = Event { number: *number, index: *index, at: *at, kind, instance, node, reason };
        return serde_json::to_string(&event).expect("an event has only text and numbers") + "\n";
    }
    let about = match (&**instance, &**node) {
        ("", "") => "the cluster".to_owned(),
        ("", node) => node.to_owned(),
        (instance, node) => format!("{instance} on {node}"),
    };
    let colour = match &**kind {
        "started" | "back" | "armed" | "joined" | "rejoined" | "uncordoned" => Colour::Good,
        "lost" | "ended" | "silent" | "fenced" | "dead" | "frozen" => Colour::Bad,
        _ => Colour::Waiting,
    };
    let behind = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    format!("{}  {}  {about}{behind}\n", moment(*at), paint(&format!("{kind:<10}"), colour, coloured))
}

/// Of a Unix time in milliseconds, the second in UTC.
fn moment(at: u64) -> String {
    let time = i64::try_from(at / 1000).ok().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
    let time = time.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let ((year, month, day), (hour, minute, second)) = (time.to_calendar_date(), time.to_hms());
    format!("{year}-{:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z", u8::from(month))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_when_what_of_whom_and_why() {
        let event = |instance: &str, node: &str, reason: &str| {
            let [kind, instance, node, reason] = ["placed", instance, node, reason].map(str::to_owned);
            proto::Event { number: 7, index: 9, at: 1_700_000_000_999, kind, instance, node, reason }
        };
        let lines = [event("web-0", "beta", "it was nowhere"), event("", "beta", ""), event("", "", "")];
        assert_eq!(
            lines.each_ref().map(|event| line(event, false, false)),
            [
                "2023-11-14 22:13:20Z  placed      web-0 on beta: it was nowhere\n",
                "2023-11-14 22:13:20Z  placed      beta\n",
                "2023-11-14 22:13:20Z  placed      the cluster\n",
            ]
        );
        assert_eq!(
            line(&lines[1], true, true),
            "{\"number\":7,\"index\":9,\"at\":1700000000999,\"kind\":\"placed\",\"instance\":null,\"node\":\"beta\",\
             \"reason\":null}\n"
        );
    }
}
