use super::*;

const GOOD: &str = r#"{ "version": 1, "vms": { "web": {
    "runners": ["/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-web-0", "/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-web-1"],
    "system": "x86_64-linux", "hypervisor": "qemu", "vcpus": 1, "memoryMiB": 96 } } }"#;

fn refusal(json: &str) -> String {
    Manifest::parse(json.as_bytes()).expect_err(json).to_string()
}

#[test]
fn what_is_not_said_has_its_documented_default() {
    let manifest = Manifest::parse(GOOD.as_bytes()).unwrap();
    let spec = &manifest.vms[&"web".parse().unwrap()];
    assert_eq!(spec.request(), Resources { cpus: 1, memory_mib: 96 + 128, disk_mib: 0 });
    assert!(spec.kvm && !spec.notifies && spec.restart == RestartPolicy::Always);
    assert_eq!((spec.failover, spec.priority), (Failover::Automatic, Priority::try_from(500).unwrap()));
    assert_eq!(spec.may_be_away(), 1);
    assert_eq!(manifest.instances().map(|id| id.to_string()).collect::<Vec<_>>(), ["web-0", "web-1"]);
}

#[test]
fn an_error_names_the_json_path() {
    for (from, to, path) in [
        ("\"vcpus\": 1", "\"vcpu\": 1", "vms.web.vcpu"),
        ("\"vcpus\": 1", "\"vcpus\": \"1\"", "vms.web.vcpus"),
        ("\"vcpus\": 1", "\"vcpus\": -1", "vms.web.vcpus"),
        ("\"vcpus\": 1", "\"vcpus\": 0", "vms.web.vcpus"),
        ("\"memoryMiB\": 96", "\"memoryMiB\": 0", "vms.web.memoryMiB"),
        ("\"memoryMiB\": 96", "\"memoryMiB\": 18446744073709551615", "vms.web.memoryMiB"),
        ("\"memoryMiB\": 96", "\"memoryMiB\": 12297829382473034410", "vms.web.runners[1]"),
        ("\"memoryMiB\": 96", "\"memoryMiB\": 96, \"memoryMiB\": 97", "vms.web"),
        ("\"hypervisor\": \"qemu\"", "\"hypervisor\": \"xen\"", "vms.web.hypervisor"),
        ("\"vcpus\": 1", "\"vcpus\": 1, \"failover\": \"never\"", "vms.web.failover"),
        ("\"vcpus\": 1", "\"vcpus\": 1, \"priority\": 1001", "vms.web.priority"),
        ("\"vcpus\": 1", "\"vcpus\": 1, \"minAvailable\": 2", "vms.web.minAvailable"),
        ("\"vcpus\": 1", "\"vcpus\": 1, \"minAvailable\": -1", "vms.web.minAvailable"),
        ("x86_64-linux", "x86_64-darwin", "vms.web.system"),
        ("aaaa-web-0", "aaaa-web-0.drv", "vms.web.runners[0]"),
        ("/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-web-1", "/tmp/web", "vms.web.runners[1]"),
        ("aaaa-web-1", "aaaa-web-0", "vms.web.runners[1]"),
        ("\"web\"", "\"../x\"", "vms"),
        ("\"web\"", "\"\"", "vms"),
        ("\"web\"", "\"wéb\"", "vms"),
        ("\"version\": 1,", "", "version"),
        ("\"version\": 1", "\"version\": 1, \"vm\": {}", "vm"),
    ] {
        let error = refusal(&GOOD.replace(from, to));
        assert!(error.contains(path), "{to}: {error}");
    }
    let long = refusal(&GOOD.replace("\"web\"", &format!("\"{}\"", "w".repeat(300))));
    assert!(long.contains("DNS label"), "{long}");
}

#[test]
fn a_vm_that_is_named_twice_is_refused() {
    let twice = GOOD.replace(
        "\"vms\": {",
        "\"vms\": { \"web\": {\"runners\": [\"/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-x\"],
        \"system\": \"x86_64-linux\", \"hypervisor\": \"qemu\", \"vcpus\": 1, \"memoryMiB\": 96},",
    );
    let error = refusal(&twice);
    assert!(error.contains("web is named twice"), "{error}");
}

#[test]
fn another_version_is_named_before_anything_else() {
    let error = refusal(r#"{ "version": 2, "machines": [] }"#);
    assert!(error.contains("version 2") && error.contains("upgrade"), "{error}");
}

#[test]
fn a_file_that_is_too_large_is_not_even_parsed() {
    let error = Manifest::parse(&vec![b'['; MAX_BYTES + 1]).unwrap_err();
    assert!(matches!(error, ManifestError::TooLarge { .. }));
}

#[test]
fn deep_nesting_and_garbage_are_refused() {
    for json in ["", "null", "[", "{}", &"[".repeat(100_000), "\u{0}", "{\"version\":1,\"vms\":{}} x"] {
        refusal(json);
    }
}

#[test]
fn the_hash_is_of_the_content_not_of_the_file() {
    let manifest = Manifest::parse(GOOD.as_bytes()).unwrap();
    let compact = serde_json::to_vec(&manifest).unwrap();
    assert_eq!(Manifest::parse(&compact).unwrap().hash(), manifest.hash());
    let other = Manifest::parse(GOOD.replace("96", "97").as_bytes()).unwrap();
    assert_ne!(other.hash(), manifest.hash());
}

#[test]
fn the_difference_of_two_manifests_is_a_line_a_vm() {
    use crate::state::tests::{manifest, vm};
    let before = manifest(&[("web", vm("web", 2)), ("db", vm("db", 1)), ("old", vm("old", 1))]);
    let after = manifest(&[("web", VmSpec { vcpus: 2, ..vm("web", 1) }), ("db", vm("db", 1)), ("new", vm("new", 1))]);
    let lines = differences(&before.vms, &after.vms);
    assert_eq!(lines, ["add new", "remove old", "change web: replicas 2 → 1, vCPUs 1 → 2"]);
    assert!(differences(&before.vms, &before.vms).is_empty());
    let spec = VmSpec { failover: Failover::Manual, priority: Priority::MAX, min_available: Some(0), ..vm("web", 2) };
    let lines = differences(&before.vms, &manifest(&[("web", spec), ("db", vm("db", 1)), ("old", vm("old", 1))]).vms);
    assert_eq!(lines, ["change web: failover automatic → manual, priority 500 → 1000, minimum available 1 → 0"]);
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let _ = Manifest::parse(&bytes);
    }

    #[test]
    fn a_manifest_reads_back_as_it_was_written(vcpus in 1..64_u32, memory in 1..1_000_000_u64, replicas in 1..5_usize) {
        let spec = VmSpec { vcpus, memory_mib: memory, ..crate::state::tests::vm("web", replicas) };
        let manifest = Manifest::new([("web".parse().unwrap(), spec)].into()).unwrap();
        let json = serde_json::to_vec(&manifest).unwrap();
        proptest::prop_assert_eq!(Manifest::parse(&json).unwrap(), manifest);
    }
}
