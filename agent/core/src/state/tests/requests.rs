//! What is asked twice.

use super::*;
use crate::command::Request;
use crate::types::ClientId;

#[test]
fn a_request_that_comes_twice_is_carried_out_once_and_gets_one_answer() {
    let mut fixture = Fixture::of_nodes(1);
    let spec =
        TaskSpec { command: vec!["true".to_owned()], request: Resources { cpus: 1, memory_mib: 1, disk_mib: 0 } };
    let request = Request { client: ClientId(1), sequence: 1, answered: 1, until: 1_000 };
    let entry = Entry { at: Timestamp(1), decided_in: None, request: Some(request), command: Command::RunTask(spec) };
    let first = fixture.state.apply(100, TERM, &entry);
    assert_eq!(first.answer, Answer { index: 100, reply: Reply::Task(TaskId(1)) });
    let again = fixture.state.apply(101, TERM, &entry);
    assert_eq!((again.answer, again.changes.len(), fixture.state.tasks().len()), (first.answer, 0, 1));
    // A snapshot takes that knowledge along.
    let rows = first.changes.into_iter().chain([fixture.state.sessions_row()]);
    let rows = rows.map(|change| (change.table, change.key, change.value.unwrap()));
    let rows: BTreeMap<_, _> = rows.map(|(table, key, value)| ((table, key), value)).collect();
    let all = fixture.rows.into_iter().chain(rows).collect::<BTreeMap<_, _>>();
    let copy = State::from_rows(all.into_iter().map(|((table, key), value)| (table, key, value))).unwrap();
    assert_eq!(copy, fixture.state);
}
