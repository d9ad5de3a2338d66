//! check-config and check-manifest: what is right passes, and what is wrong is named with its place.

use std::fs::File;

use super::support::{Host, manifest, runner};
use super::{refusal, run, write};

#[tokio::test]
async fn a_good_configuration_passes_and_says_what_it_configures() {
    let [alpha, _beta] = Host::blank(["alpha", "beta"]);
    alpha.config();
    let path = alpha.dir.path().join("config.toml").display().to_string();
    let (code, out, err) = run(&["check-config", &path]);
    assert_eq!((code, &*err), (0, ""));
    assert_eq!(out, format!("{path}: configures alpha, one of 2 servers\n"));
}

#[test]
fn a_wrong_configuration_is_refused_with_its_line_and_key() {
    let good = "[node]\nname = \"alpha\"\n[cluster]\nservers = [\"alpha@10.0.0.1:1\"]\nsecret_file = \"/secret\"\n";
    let dir = tempfile::tempdir().unwrap();
    for (from, to, words) in [
        ("name", "nmae", ["line 2", "nmae"]),
        ("\"alpha\"", "7", ["line 2", "name"]),
        ("\"alpha\"", "\"../x\"", ["line 2", "../x"]),
        ("\"alpha\"", "\"\"", ["line 2", "name"]),
        ("\"alpha\"", "\"é\"", ["line 2", "é"]),
        ("\"alpha\"", "\"beta\"", ["line 2", "not among cluster.servers"]),
        ("alpha@10.0.0.1:1", "alpha@10.0.0.1", ["line 4", "HOST:PORT"]),
        ("[\"alpha@10.0.0.1:1\"]", "[\"alpha@a:1\", \"alpha@b:1\"]", ["line 4", "named twice"]),
        ("[\"alpha@10.0.0.1:1\"]", "[]", ["line 2", "not among cluster.servers"]),
        ("/secret", "secret", ["line 5", "secret is not an absolute path"]),
        ("[cluster]", "[clutser]", ["line 3", "clutser"]),
        ("[cluster]", "[resources]\ncpus = 99999999999\n[cluster]", ["line 4", "99999999999"]),
        ("[cluster]", "[resources]\nmemory_mib = -1\n[cluster]", ["line 4", "-1"]),
        ("[cluster]", "[resources]\nhypervisors = [\"xen\"]\n[cluster]", ["line 4", "xen"]),
        ("[cluster]", "cluster", ["line 3", "config.toml"]),
    ] {
        let path = write(dir.path(), "config.toml", good.replacen(from, to, 1));
        let told = refusal(&["check-config", &path], 1);
        assert!(words.iter().all(|word| told.contains(word)) && told.contains(&path), "{to}: {told}");
    }
    let told = refusal(&["check-config", "/nowhere/config.toml"], 1);
    assert!(told.contains("/nowhere/config.toml") && told.contains("No such file"), "{told}");
    let path = write(dir.path(), "binary", [0xff, 0xfe]);
    assert!(refusal(&["check-config", &path], 1).contains(&path));
}

#[test]
fn an_agent_with_a_wrong_configuration_does_not_start_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let text =
        format!("[node]\nname = \"alpha\"\ndata_dir = {data:?}\n[cluster]\nservers = []\nsecret_file = \"/s\"\n");
    let path = write(dir.path(), "config.toml", text);
    let (code, out, err) = run(&["agent", "--config", &path]);
    assert_eq!(code, 1);
    assert!(format!("{out}{err}").contains("cluster.servers"), "{out}{err}");
    assert!(!data.exists());
}

#[test]
fn a_good_manifest_passes_and_says_what_it_declares() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "manifest.json", manifest(&[("db", ""), ("web", "")]));
    let (code, out, err) = run(&["check-manifest", &path]);
    assert_eq!((code, &*err), (0, ""));
    assert!(out.starts_with(&format!("{path}: 2 VMs, 2 instances, ")), "{out}");
}

#[test]
fn a_wrong_manifest_is_refused_with_its_json_path() {
    let web = |more: &str| manifest(&[("web", more)]);
    let text = |json: Vec<u8>| String::from_utf8(json).unwrap();
    let replaced = |from: &str, to: &str| {
        let good = text(web(""));
        assert!(good.contains(from));
        good.replace(from, to).into_bytes()
    };
    let huge = u64::MAX / 2 + 1;
    let twice = format!(r#", "memoryOverheadMiB": {huge}"#);
    let short =
        r#""version": 1, "cluster": { "lease": { "leaseMs": 5000, "renewMs": 1000, "killMs": 3000, "waitMs": 8000 } }"#;
    let cases: Vec<(Vec<u8>, Vec<&str>)> = vec![
        (web(r#", "colour": "red""#), vec!["vms.web.colour"]),
        (replaced(r#""version": 1"#, r#""version": 1, "vm": {}"#), vec!["vm"]),
        (replaced(r#""vcpus": 1"#, r#""vcpus": "one""#), vec!["vms.web.vcpus"]),
        (replaced(r#""vcpus": 1"#, r#""vcpus": -1"#), vec!["vms.web.vcpus", "-1"]),
        (replaced(r#""vcpus": 1"#, r#""vcpus": 0"#), vec!["vms.web.vcpus"]),
        (replaced(r#""vcpus": 1,"#, ""), vec!["vms.web", "vcpus"]),
        (replaced(r#""memoryMiB": 100"#, r#""memoryMiB": 1e99"#), vec!["vms.web.memoryMiB"]),
        (replaced("qemu\"", "xen\""), vec!["vms.web.hypervisor", "xen"]),
        (web(r#", "requires": { "zone": "a", "zone": "b" }"#), vec!["vms.web.requires", "zone"]),
        (web(r#", "requires": { "zone": 7 }"#), vec!["vms.web.requires.zone"]),
        (manifest(&[("web", ""), ("web", "")]), vec!["vms", "web"]),
        (manifest(&[("db", &twice), ("web", &twice)]), vec!["vms.web.runners[0]", "overflow"]),
        (manifest(&[("../x", "")]), vec!["vms", "../x"]),
        (manifest(&[("", "")]), vec!["vms", "label"]),
        (manifest(&[(&"a".repeat(300), "")]), vec!["vms", "aaa"]),
        (manifest(&[("wéb", "")]), vec!["vms", "wéb"]),
        (replaced(&runner("web-0"), "/nix/store/web"), vec!["vms.web.runners[0]", "/nix/store/web"]),
        (replaced(&runner("web-0"), "/etc/passwd"), vec!["vms.web.runners[0]", "/etc/passwd"]),
        (replaced(&runner("web-0"), &format!("{}/../x", runner("web-0"))), vec!["vms.web.runners[0]"]),
        (replaced(&runner("web-0"), &format!("{0}\", \"{0}", runner("web-0"))), vec!["vms.web.runners[1]", "its own"]),
        (web(r#", "failover": "sometimes""#), vec!["vms.web.failover", "sometimes"]),
        (web(r#", "minAvailable": 1"#), vec!["vms.web.minAvailable", "1 of 1 replicas"]),
        (replaced(r#""version": 1"#, short), vec!["cluster.lease", "8000 ms", "8066 ms"]),
        (replaced(r#""version": 1"#, r#""version": 9"#), vec!["version 9", "upgrade"]),
        (b"[]".to_vec(), vec!["manifest"]),
        (b"".to_vec(), vec!["manifest"]),
        (vec![0xff; 64], vec!["manifest"]),
        ("[".repeat(100_000).into_bytes(), vec!["manifest"]),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (json, words) in cases {
        let path = write(dir.path(), "manifest.json", &json);
        let told = refusal(&["check-manifest", &path], 1);
        assert!(words.iter().all(|word| told.contains(word)) && told.contains(&path), "{words:?}: {told}");
        assert!(told.len() < 1500, "it quotes too much: {} bytes", told.len());
    }
}

#[test]
fn a_manifest_of_a_hundred_megabytes_is_refused_unread() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("manifest.json");
    File::create(&path).unwrap().set_len(100 << 20).unwrap();
    let told = refusal(&["check-manifest", path.to_str().unwrap()], 1);
    assert!(told.contains("104857600 bytes") && told.contains("4194304"), "{told}");
    let told = refusal(&["check-manifest", "/nowhere/manifest.json"], 1);
    assert!(told.contains("/nowhere/manifest.json"), "{told}");
    assert!(refusal(&["check-manifest", dir.path().to_str().unwrap()], 1).contains("directory"));
}
