//! What has happened: the events that are kept, and those that follow.

use blixard_core::state::{Event, State};
use futures_util::stream;
use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::Status;

use super::{Api, proto, to_status};
use crate::node::Handle;

/// Events that are looked at at once; nothing is applied meanwhile.
const AT_ONCE: usize = 500;

/// Which events are asked for; an empty name stands for all.
struct About {
    /// Of a VM, or of one instance.
    vm: String,
    node: String,
}

/// Somebody who has read as far as an event.
struct Reader {
    handle: Handle,
    news: watch::Receiver<u64>,
    after: u64,
    follow: bool,
    about: About,
}

impl Api {
    /// Those behind the one that is asked for, without a gap: it fails rather than leave one out.
    pub(super) async fn events_after(
        &self,
        request: proto::EventsRequest,
    ) -> Result<impl Stream<Item = Result<proto::EventsReply, Status>> + use<>, Status> {
        self.await_fresh(request.freshness()).await?;
        let handle = self.handle()?;
        let proto::EventsRequest { after, follow, vm, node, .. } = request;
        let reader = Reader { news: handle.changes(), handle, after, follow, about: About { vm, node } };
        Ok(stream::unfold(Some(reader), |reader| async move { reader?.next().await }))
    }
}

impl Reader {
    /// The next events, or why there are none, and then nobody reads on.
    async fn next(mut self) -> Option<(Result<proto::EventsReply, Status>, Option<Self>)> {
        loop {
            let page = self.handle.read(|state, _| page(state, self.after, &self.about));
            match page.unwrap_or_else(|error| Err(to_status(&error))) {
                Err(status) => return Some((Err(status), None)),
                Ok(reply) if reply.until > self.after => {
                    self.after = reply.until;
                    return Some((Ok(reply), Some(self)));
                }
                Ok(_) if !self.follow => return None,
                Ok(_) => self.news.changed().await.ok()?,
            }
        }
    }
}

impl About {
    fn includes(&self, event: &Event) -> bool {
        let is_of_vm = event.instance().is_some_and(|id| id.vm.as_str() == self.vm || id.to_string() == self.vm);
        let is_of_node = event.node().is_some_and(|node| node.as_str() == self.node);
        (self.vm.is_empty() || is_of_vm) && (self.node.is_empty() || is_of_node)
    }
}

/// What is asked for of the events behind this one, of as many as are looked at at once.
fn page(state: &State, after: u64, about: &About) -> Result<proto::EventsReply, Status> {
    if let Some(oldest) = state.oldest_event().filter(|oldest| (1..oldest - 1).contains(&after)) {
        return Err(Status::out_of_range(format!(
            "the events {} to {} are no longer kept: ask for those after {}",
            after + 1,
            oldest - 1,
            oldest - 1
        )));
    }
    let mut reply = proto::EventsReply { events: Vec::new(), until: after };
    for (number, event) in state.events_after(after).take(AT_ONCE) {
        reply.until = number;
        if about.includes(&event) {
            reply.events.push(proto::Event {
                number,
                index: event.index,
                at: event.at.0,
                kind: event.kind().to_owned(),
                instance: event.instance().map(ToString::to_string).unwrap_or_default(),
                node: event.node().map(ToString::to_string).unwrap_or_default(),
                reason: event.reason(),
            });
        }
    }
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use blixard_core::command::{Command, Entry, NewNode};
    use blixard_core::state::MAX_EVENTS;
    use blixard_core::types::{ClusterId, Hash, Level, NodeId, NodeRole, Term, Timestamp};

    use super::*;

    const ALL: About = About { vm: String::new(), node: String::new() };

    /// A state in which so many events have happened, each by an entry.
    fn after(events: u64) -> State {
        let first = NewNode {
            name: "alpha".parse().unwrap(),
            address: "127.0.0.1:1".parse().unwrap(),
            key: Hash::of(b"key"),
            understands: Level(1),
            role: NodeRole::Auto,
        };
        let cluster = ClusterId::from_bytes([7; 16]);
        let found =
            Command::Found { cluster, ca_certificate: vec![1], sealed_ca_key: vec![2], first, listed_servers: 1 };
        let turns = [false, true].map(|alive| Command::SetWorkerAlive { node: NodeId(1), alive });
        let mut state = State::default();
        for (index, command) in (1..=events).zip(std::iter::once(&found).chain(turns.iter().cycle())) {
            let (term, command) = (Term(1), command.clone());
            state.apply(index, term, &Entry { at: Timestamp(index), decided_in: Some(term), request: None, command });
        }
        state
    }

    #[test]
    fn pages_follow_each_other_without_a_gap() {
        let state = after(1200);
        let (mut numbers, mut until) = (Vec::new(), 0);
        while let Some(page) = Some(page(&state, until, &ALL).unwrap()).filter(|page| page.until > until) {
            assert!(page.events.len() <= AT_ONCE);
            numbers.extend(page.events.iter().map(|event| event.number));
            until = page.until;
        }
        assert_eq!(numbers, (1..=1200).collect::<Vec<_>>());
        let nobody = page(&state, 0, &About { node: "beta".to_owned(), ..ALL }).unwrap();
        assert_eq!((nobody.events.len(), nobody.until), (0, AT_ONCE as u64), "it has looked that far");
    }

    #[test]
    fn who_has_missed_an_event_is_told_so_and_who_has_read_none_begins_with_the_oldest() {
        let state = after(MAX_EVENTS as u64 + 10);
        assert_eq!(page(&state, 0, &ALL).unwrap().events[0].number, 11);
        assert_eq!(page(&state, 10, &ALL).unwrap().events[0].number, 11);
        let missed = page(&state, 9, &ALL).unwrap_err();
        assert_eq!(missed.code(), tonic::Code::OutOfRange);
        assert!(missed.message().contains("10 to 10 are no longer kept: ask for those after 10"), "{missed}");
    }
}
