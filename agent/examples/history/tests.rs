//! Both checkers, by histories that are linearizable and histories that aren't.

use blixard_core::command::Presence;

use super::record::{Answer, Ask, Cell, Change, Operation, Value};
use super::{replay, search};

/// A history, written by hand: `(called, returned)` and what was asked and answered.
#[derive(Default)]
struct History(Vec<Operation>);

const R: &str = "r";

fn value(content: u64) -> Value {
    Value { content, running: false }
}

fn put(content: u64) -> Change {
    Change::Put { value: value(content), must: None }
}

fn make(content: u64) -> Change {
    Change::Put { value: value(content), must: Some(Presence::Absent) }
}

impl History {
    fn ask(mut self, called: u64, returned: impl Into<Option<u64>>, ask: Ask, answers: &[Answer]) -> Self {
        let id = self.0.len() as u64;
        let (returned, client) = (returned.into(), u32::try_from(id).unwrap());
        self.0.push(Operation { id, client, called, returned, ask, answers: answers.to_vec() });
        self.0.sort_by_key(|operation| operation.called);
        self
    }

    fn change(self, called: u64, returned: impl Into<Option<u64>>, change: Change, answers: &[Answer]) -> Self {
        self.ask(called, returned, Ask::Change { register: R.to_owned(), change }, answers)
    }

    fn done(self, called: u64, returned: u64, change: Change, index: u64) -> Self {
        self.change(called, returned, change, &[Answer::Done { index }])
    }

    fn refused(self, called: u64, returned: u64, change: Change, index: impl Into<Option<u64>>) -> Self {
        self.change(called, returned, change, &[Answer::Refused { index: index.into() }])
    }

    fn unknown(self, called: u64, change: Change) -> Self {
        self.change(called, None, change, &[])
    }

    fn read(self, called: u64, returned: u64, cell: Cell, index: impl Into<Option<u64>>) -> Self {
        let answer = Answer::Cells { index: index.into(), cells: vec![cell] };
        self.ask(called, returned, Ask::Read { registers: vec![R.to_owned()] }, &[answer])
    }

    /// How many violations the replay and the search find.
    fn check(&self) -> (usize, usize) {
        let (replay, search) = (replay::check(&self.0), search::check(&self.0));
        assert_eq!((replay.given_up, search.unknown), (0, 0));
        (replay.violations.len(), search.violations.len())
    }

    fn is_linearizable(&self) {
        let (replay, search) = (replay::check(&self.0), search::check(&self.0));
        assert!(replay.violations.is_empty(), "{:#?}", replay.violations);
        assert!(search.violations.is_empty(), "{:#?}", search.violations);
    }

    fn is_caught_by_both(&self) {
        let (replay, search) = self.check();
        assert!(replay > 0, "the replay finds nothing");
        assert!(search > 0, "the search finds nothing");
    }
}

#[test]
fn one_after_the_other_and_at_the_same_time_are_both_fine() {
    History::default()
        .read(1, 2, None, 4)
        .done(3, 6, make(1), 5)
        .read(4, 7, None, 4)
        .read(5, 8, Some(value(1)), 5)
        .refused(9, 10, make(2), None)
        .refused(11, 14, make(3), 9)
        .done(12, 15, Change::SetRunning { running: true }, 8)
        .read(16, 17, Some(Value { content: 1, running: true }), None)
        .done(18, 19, Change::Remove, 12)
        .refused(20, 21, Change::SetRunning { running: false }, 13)
        .read(22, 23, None, 20)
        .is_linearizable();
}

#[test]
fn a_change_of_unknown_outcome_may_come_at_any_time_once_or_never() {
    let begin = || History::default().done(1, 2, make(1), 5).unknown(3, put(2));
    begin().read(4, 5, Some(value(1)), 6).read(6, 7, Some(value(1)), 9).is_linearizable();
    begin().read(4, 5, Some(value(2)), 6).read(6, 7, Some(value(2)), 9).is_linearizable();
    begin().read(4, 5, Some(value(1)), 6).done(6, 7, put(3), 7).read(8, 9, Some(value(2)), 9).is_linearizable();
    let twice = begin().read(4, 5, Some(value(2)), 6).done(6, 7, put(3), 7).read(8, 9, Some(value(2)), 9);
    twice.is_caught_by_both();
    let early = History::default().done(1, 2, make(1), 5).read(3, 4, Some(value(2)), 6).unknown(5, put(2));
    early.is_caught_by_both();
}

#[test]
fn changes_of_unknown_outcome_explain_each_other() {
    History::default()
        .done(1, 2, make(1), 5)
        .unknown(3, Change::Remove)
        .unknown(4, make(2))
        .read(5, 6, Some(value(2)), 8)
        .done(7, 8, Change::SetRunning { running: true }, 9)
        .refused(9, 10, make(7), None)
        .read(11, 12, Some(Value { content: 2, running: true }), 9)
        .is_linearizable();
}

#[test]
fn what_was_surely_not_done_must_not_be_seen() {
    let not_done = || History::default().done(1, 2, make(1), 5).change(3, 4, put(2), &[Answer::Nothing]);
    not_done().read(5, 6, Some(value(1)), 6).is_linearizable();
    not_done().read(5, 6, Some(value(2)), 6).is_caught_by_both();
}

#[test]
fn a_stale_read_is_caught() {
    let begin = || History::default().done(1, 2, make(1), 5).done(3, 4, put(2), 6);
    begin().read(5, 6, Some(value(1)), 5).is_caught_by_both();
    begin().read(5, 6, Some(value(1)), None).is_caught_by_both();
    begin().read(5, 6, None, 4).is_caught_by_both();
}

#[test]
fn two_reads_in_the_wrong_order_are_caught() {
    let begin = || History::default().done(1, 2, make(1), 5).done(3, 10, put(2), 6);
    begin().read(4, 5, Some(value(2)), None).read(6, 7, Some(value(1)), None).is_caught_by_both();
    begin().read(4, 5, Some(value(1)), None).read(6, 7, Some(value(2)), None).is_linearizable();
}

#[test]
fn a_lost_write_is_caught() {
    History::default().done(1, 2, make(1), 5).read(3, 4, None, 9).is_caught_by_both();
    History::default().done(1, 2, make(1), 5).done(3, 4, make(2), 9).is_caught_by_both();
    let lost = History::default().done(1, 2, make(1), 5).refused(3, 4, Change::Remove, None);
    lost.is_caught_by_both();
    let lost = History::default().done(1, 2, make(1), 5).refused(3, 4, Change::Remove, 8);
    lost.is_caught_by_both();
}

#[test]
fn two_winners_of_a_conditional_make_are_caught() {
    History::default().done(1, 4, make(1), 5).done(2, 3, make(2), 6).is_caught_by_both();
    // Also where both are told the same entry.
    History::default().done(1, 4, make(1), 5).done(2, 3, make(2), 5).is_caught_by_both();
}

#[test]
fn a_write_that_is_applied_twice_is_caught() {
    History::default()
        .done(1, 2, put(1), 5)
        .done(3, 4, put(2), 6)
        .read(5, 6, Some(value(2)), 6)
        .read(7, 8, Some(value(1)), 7)
        .is_caught_by_both();
}

#[test]
fn a_read_from_the_future_is_caught() {
    History::default().read(1, 2, Some(value(1)), 5).done(3, 4, make(1), 5).is_caught_by_both();
    History::default().read(1, 2, Some(value(1)), None).done(3, 4, make(1), 5).is_caught_by_both();
}

#[test]
fn one_look_at_two_registers_sees_them_at_one_time() {
    let both = |called, returned, index, cells: [Cell; 2]| {
        let answer = Answer::Cells { index: Some(index), cells: cells.to_vec() };
        let registers = vec![R.to_owned(), "s".to_owned()];
        move |history: History| history.ask(called, returned, Ask::Read { registers }, &[answer])
    };
    let second = Ask::Change { register: "s".to_owned(), change: put(2) };
    let begin = || History::default().done(1, 9, put(1), 5).ask(2, 8, second.clone(), &[Answer::Done { index: 6 }]);
    both(3, 4, 5, [Some(value(1)), None])(begin()).is_linearizable();
    // Each register by itself could be so: that entries have an order is what the replay alone knows.
    assert_eq!(both(3, 4, 6, [None, Some(value(2))])(begin()).check(), (1, 0));
}

#[test]
fn answers_that_name_entries_out_of_order_are_caught_by_the_replay() {
    assert_eq!(History::default().done(1, 2, put(1), 7).done(3, 4, put(2), 6).check(), (1, 0));
    assert_eq!(History::default().done(1, 2, put(1), 7).read(3, 4, None, 6).check(), (1, 1));
}

#[test]
fn a_request_that_is_sent_again_has_the_answer_that_it_had() {
    let answers = |second| [Answer::Done { index: 5 }, Answer::Done { index: second }];
    History::default().change(1, 2, make(1), &answers(5)).is_linearizable();
    assert_eq!(History::default().change(1, 2, make(1), &answers(6)).check().0, 1);
}
