use super::*;
use crate::manifest::VmSpec;
use crate::state::tests::{Fixture, manifest, vm};

#[test]
fn a_plan_is_what_applying_it_does() {
    let mut fixture = Fixture::of_nodes(2);
    fixture.declare(&[("web", vm("web", 2)), ("db", vm("db", 1)), ("old", vm("old", 1))]);
    fixture.settle();
    let next =
        manifest(&[("web", VmSpec { memory_mib: 900, ..vm("web", 2) }), ("db", vm("other", 1)), ("new", vm("new", 1))]);
    let lines: Vec<_> = plan(&fixture.state, &next).iter().map(ToString::to_string).collect();
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
        []
    );
}
