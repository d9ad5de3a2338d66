//! What clients have asked, so that a request that comes twice is done once.
//!
//! A client numbers its requests and says, with each, below which number it has all answers: what is kept for it is only
//! what it may still ask again. Everything is counted in log entries, so all servers forget at the same entry.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::command::{Answer, Reply, Request};
use crate::types::ClientId;

/// A client that asked nothing for so many entries is forgotten. A request is valid for as many from when it was made, so
/// none of it can come after that.
pub const WINDOW: u64 = 1 << 20;
/// Most clients that are remembered; the one that was silent longest goes first.
const MAX_CLIENTS: usize = 4096;

/// Most outcomes that are kept for one client; of those above it, the oldest are given up.
const MAX_OUTCOMES: usize = 4096;

/// The clients, by their ids.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Sessions {
    clients: BTreeMap<ClientId, Session>,
    /// Clients by when they asked last.
    by_index: BTreeMap<u64, ClientId>,
    /// What a client asked that was forgotten may be asked again until here.
    closed_until: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct Session {
    /// Index of its last request.
    last: u64,
    /// It has the answers of all requests below this number, or gets them no more.
    answered: u64,
    /// The outcomes that it may not have, by the numbers of their requests.
    outcomes: BTreeMap<u64, Answer>,
}

/// What is known of a request.
pub(super) enum Known {
    /// It was never carried out.
    Nothing,
    /// It was, and this came of it.
    Outcome(Answer),
    /// It may have been carried out or not, and nobody waits for its answer any more.
    Expired,
}

impl Sessions {
    pub(super) fn look_up(&self, index: u64, request: &Request) -> Known {
        if index > request.until {
            return Known::Expired;
        }
        let Some(session) = self.clients.get(&request.client) else {
            return if request.until <= self.closed_until { Known::Expired } else { Known::Nothing };
        };
        match session.outcomes.get(&request.sequence) {
            Some(answer) => Known::Outcome(answer.clone()),
            None if request.sequence < session.answered => Known::Expired,
            None => Known::Nothing,
        }
    }

    pub(super) fn record(&mut self, index: u64, request: &Request, reply: Reply) {
        let session = self.clients.entry(request.client).or_default();
        self.by_index.remove(&session.last);
        self.by_index.insert(index, request.client);
        session.last = index;
        session.answered = session.answered.max(request.answered);
        session.outcomes.insert(request.sequence, Answer { index, reply });
        session.outcomes = session.outcomes.split_off(&session.answered);
        while session.outcomes.len() > MAX_OUTCOMES {
            let (given_up, _) = session.outcomes.pop_first().expect("there are many");
            session.answered = given_up + 1;
        }
        self.forget(index);
    }

    fn forget(&mut self, index: u64) {
        while let Some((&last, &client)) = self.by_index.first_key_value() {
            if self.clients.len() <= MAX_CLIENTS && last + WINDOW >= index {
                return;
            }
            self.by_index.remove(&last);
            self.clients.remove(&client);
            self.closed_until = self.closed_until.max(last + WINDOW);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::TaskId;

    const CLIENT: ClientId = ClientId(7);

    fn request(sequence: u64, answered: u64) -> Request {
        Request { client: CLIENT, sequence, answered, until: 1000 + WINDOW }
    }

    fn reply(number: u64) -> Reply {
        Reply::Task(TaskId(number))
    }

    fn known(index: u64, sessions: &Sessions, request: &Request) -> Option<(u64, Reply)> {
        match sessions.look_up(index, request) {
            Known::Nothing => None,
            Known::Outcome(Answer { index, reply }) => Some((index, reply)),
            Known::Expired => Some((0, Reply::Expired)),
        }
    }

    #[test]
    fn what_was_asked_before_gets_the_same_answer_until_the_client_has_it() {
        let mut sessions = Sessions::default();
        assert_eq!(known(5, &sessions, &request(1, 1)), None);
        sessions.record(5, &request(1, 1), reply(11));
        sessions.record(6, &request(3, 1), reply(13));
        assert_eq!(known(9, &sessions, &request(1, 1)), Some((5, reply(11))));
        assert_eq!(known(9, &sessions, &request(2, 1)), None, "it was overtaken");
        sessions.record(9, &request(2, 1), reply(12));
        sessions.record(10, &request(4, 3), reply(14));
        let expired = Some((0, Reply::Expired));
        assert_eq!(known(11, &sessions, &request(1, 1)), expired, "it came late, and its client has the answer");
        assert_eq!(known(11, &sessions, &request(3, 3)), Some((6, reply(13))));
        assert_eq!(sessions.clients[&CLIENT].outcomes.len(), 2);
    }

    #[test]
    fn a_client_that_is_forgotten_cannot_have_an_old_request_done_again() {
        let mut sessions = Sessions::default();
        sessions.record(1000, &request(1, 1), reply(1));
        let other = Request { client: ClientId(8), sequence: 1, answered: 1, until: u64::MAX };
        sessions.record(1000 + WINDOW, &other, reply(2));
        assert!(sessions.clients.contains_key(&CLIENT));
        sessions.record(1001 + WINDOW, &Request { sequence: 2, ..other }, reply(3));
        assert!(!sessions.clients.contains_key(&CLIENT));
        assert_eq!(known(1002 + WINDOW, &sessions, &request(1, 1)), Some((0, Reply::Expired)));
    }

    #[test]
    fn of_a_client_that_says_of_nothing_that_it_is_answered_the_newest_outcomes_are_kept() {
        let mut sessions = Sessions::default();
        let last = MAX_OUTCOMES as u64 + 10;
        for sequence in 1..=last {
            sessions.record(sequence, &request(sequence, 1), reply(sequence));
        }
        assert_eq!(sessions.clients[&CLIENT].outcomes.len(), MAX_OUTCOMES);
        assert_eq!(known(last + 1, &sessions, &request(10, 1)), Some((0, Reply::Expired)), "nobody knows any more");
        assert_eq!(known(last + 1, &sessions, &request(11, 1)), Some((11, reply(11))));
        assert_eq!(known(last + 1, &sessions, &request(last, 1)), Some((last, reply(last))));
    }

    #[test]
    fn there_are_never_more_clients_than_the_limit_and_the_last_to_ask_stay() {
        let mut sessions = Sessions::default();
        for number in 1..=MAX_CLIENTS as u64 + 10 {
            let request = Request { client: ClientId(number.into()), sequence: 1, answered: 1, until: WINDOW };
            sessions.record(number, &request, reply(1));
        }
        assert_eq!((sessions.clients.len(), sessions.by_index.len()), (MAX_CLIENTS, MAX_CLIENTS));
        let first = Request { client: ClientId(1), sequence: 1, answered: 1, until: WINDOW };
        assert_eq!(known(5000, &sessions, &first), Some((0, Reply::Expired)), "it was pushed out");
    }
}
