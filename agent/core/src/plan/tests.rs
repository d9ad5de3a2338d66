use super::*;
use crate::command::{Command, Reply};
use crate::manifest::VmSpec;
use crate::state::tests::{Fixture, manifest, vm};

#[test]
fn a_plan_is_what_applying_it_does() {
    let mut fixture = Fixture::of_nodes(2);
    fixture.declare(&[("web", vm("web", 2)), ("db", vm("db", 1)), ("old", vm("old", 1))]);
    fixture.settle();
    let next =
        manifest(&[("web", VmSpec { memory_mib: 900, ..vm("web", 2) }), ("db", vm("other", 1)), ("new", vm("new", 1))]);
    let lines: Vec<_> = plan(&fixture.state, &next).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "restart db-0: another runner",
            "start new-0: it is new",
            "stop old-0: it is no longer declared",
            "update web-0: memory 1024 → 1028 MiB",
            "update web-1: memory 1024 → 1028 MiB",
        ]
    );
    assert_eq!(
        plan(&fixture.state, &manifest(&[("web", vm("web", 2)), ("db", vm("db", 1)), ("old", vm("old", 1))])),
        Ok(vec![])
    );
}

#[test]
fn a_plan_leaves_the_command_lines_vms_alone_and_is_refused_where_applying_is() {
    let mut fixture = Fixture::of_nodes(2);
    fixture.declare(&[("web", vm("web", 1))]);
    let put = Command::PutVm { name: "db".parse().unwrap(), spec: vm("db", 1), running: true, must: None };
    assert_eq!(fixture.say(put), Reply::Done);
    fixture.settle();
    let lines = plan(&fixture.state, &manifest(&[])).unwrap();
    assert_eq!(lines.iter().map(ToString::to_string).collect::<Vec<_>>(), ["stop web-0: it is no longer declared"]);
    for vms in [[("db", vm("x", 1))], [("x", vm("db", 1))]] {
        let conflict = plan(&fixture.state, &manifest(&vms)).unwrap_err().to_string();
        assert_eq!(fixture.declare(&vms), Reply::Refused(conflict));
    }
}
