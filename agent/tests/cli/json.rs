//! The shape of `status --json`: a committed example, and what the program prints, in the same shape.

use serde_json::Value;

use super::support::{Host, manifest, runner};
use super::{run, write};

const EXAMPLE: &str = include_str!("status.json");

/// The value with every number, truth and text replaced by its type's name; what an element or a label is called stays.
fn shape(value: &Value) -> Value {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(number) if number.is_u64() => "number".into(),
        Value::Number(number) => format!("not a natural number: {number}").into(),
        Value::String(_) => "text".into(),
        Value::Array(elements) => elements.iter().map(shape).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), shape(value))).collect(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_as_json_has_the_shape_of_the_committed_example() {
    let [alpha] = Host::blank(["alpha"]);
    std::fs::write(alpha.manifest(), manifest(&[("web", "")])).unwrap();
    let agent = alpha.start();
    agent.sees("the carried manifest", |status| status.instances.iter().any(|vm| vm.state == "running")).await;
    let dir = alpha.dir.path();
    let socket = dir.join("run/api.sock").display().to_string();
    let next = write(dir, "next.json", manifest(&[("big", r#", "memoryOverheadMiB": 8000"#), ("web", "")]));
    assert_eq!(run(&["apply", &next, "--socket", &socket]).0, 0);
    let idle = ["vm", "create", "idle", "--runner", &runner("idle-0"), "--vcpus", "1", "--memory", "100", "--stopped"];
    assert_eq!(run(&[&idle as &[_], &["--socket", &socket]].concat()).0, 0);
    agent.tell(blixard::agent::Told::Reload).await;
    agent.sees("a held manifest", |status| !status.held.is_empty()).await;

    let (code, out, err) = run(&["status", "--json", "--socket", &socket]);
    assert_eq!((code, &*err), (1, ""));
    assert!(out.ends_with("}\n") && out.lines().count() == 1, "one line, for whoever reads many: {out}");
    let printed: Value = serde_json::from_str(&out).unwrap();
    let example: Value = serde_json::from_str(EXAMPLE).unwrap();
    assert_eq!(shape(&printed), shape(&example), "{printed:#}");
    // What a program would branch on.
    let owners = ["/vms/0/owner", "/vms/1/owner", "/vms/2/owner"];
    for pointer in [
        "/healthy",
        "/cluster/leader",
        "/cluster/quorum",
        "/nodes/0/role",
        "/vms/0/state",
        "/vms/1/state",
        "/vms/2/state",
    ]
    .iter()
    .chain(&owners)
    {
        assert_eq!(printed.pointer(pointer), example.pointer(pointer), "{pointer}");
    }
}
