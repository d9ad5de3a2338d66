//! What a manifest says of hosts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ManifestError, invalid};
use crate::types::{NodeName, PublicKey};

/// One declared host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeclaredNode {
    /// A host of this name joins by the key to which this belongs, and by nothing else.
    pub public_key: PublicKey,
}

pub(super) fn validate(nodes: &BTreeMap<NodeName, DeclaredNode>) -> Result<(), ManifestError> {
    let mut owners: BTreeMap<PublicKey, &NodeName> = BTreeMap::new();
    for (name, node) in nodes {
        if let Some(first) = owners.insert(node.public_key, name) {
            let why = format!("it is also {first}'s: with one key, either of the two could take the other's name");
            return Err(invalid(&format!("nodes.{name}.publicKey"), why));
        }
    }
    Ok(())
}

/// What `after` declares otherwise than `before`, a line a host.
pub fn differences(before: &BTreeMap<NodeName, DeclaredNode>, after: &BTreeMap<NodeName, DeclaredNode>) -> Vec<String> {
    let added = after.keys().filter(|name| !before.contains_key(*name)).map(|name| format!("add the key of {name}"));
    let removed =
        before.keys().filter(|name| !after.contains_key(*name)).map(|name| format!("remove the key of {name}"));
    let is_changed =
        |name: &&NodeName| after.get(*name).is_some_and(|node| node.public_key != before[*name].public_key);
    let changed = before.keys().filter(is_changed).map(|name| format!("change the key of {name}"));
    added.chain(removed).chain(changed).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Manifest;
    use super::*;

    const KEY: &str = "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";
    const OTHER: &str = "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuI=";

    fn parse(nodes: &str) -> Result<BTreeMap<NodeName, DeclaredNode>, String> {
        let json = format!(r#"{{ "version": 1, "nodes": {nodes}, "vms": {{}} }}"#);
        Manifest::parse(json.as_bytes()).map(|manifest| manifest.nodes).map_err(|error| error.to_string())
    }

    fn of(keys: &[(&str, &str)]) -> BTreeMap<NodeName, DeclaredNode> {
        let declared =
            |(name, key): &(&str, &str)| (name.parse().unwrap(), DeclaredNode { public_key: key.parse().unwrap() });
        keys.iter().map(declared).collect()
    }

    #[test]
    fn keys_are_declared_by_name_and_nobody_has_to_declare_any() {
        assert!(Manifest::parse(br#"{ "version": 1, "vms": {} }"#).unwrap().nodes.is_empty());
        assert_eq!(parse(&format!(r#"{{ "beta": {{ "publicKey": "{KEY}" }} }}"#)), Ok(of(&[("beta", KEY)])));
    }

    #[test]
    fn a_declaration_that_is_none_or_a_key_of_two_hosts_is_refused_by_its_path() {
        for (nodes, path, about) in [
            (r#"{ "beta": {} }"#.to_owned(), "nodes.beta", "publicKey"),
            (r#"{ "beta": { "publicKey": "x" } }"#.to_owned(), "nodes.beta.publicKey", "openssl"),
            (format!(r#"{{ "beta": {{ "publicKey": "{KEY}", "role": "worker" }} }}"#), "nodes.beta", "role"),
            (format!(r#"{{ "Beta": {{ "publicKey": "{KEY}" }} }}"#), "nodes", "DNS label"),
            (
                format!(r#"{{ "b": {{ "publicKey": "{KEY}" }}, "b": {{ "publicKey": "{OTHER}" }} }}"#),
                "nodes",
                "b is named twice",
            ),
            (
                format!(r#"{{ "b": {{ "publicKey": "{KEY}" }}, "c": {{ "publicKey": "{KEY}" }} }}"#),
                "nodes.c.publicKey",
                "also b's",
            ),
        ] {
            let error = parse(&nodes).expect_err(&nodes);
            assert!(error.contains(path) && error.contains(about), "{nodes}: {error}");
        }
    }

    #[test]
    fn what_is_declared_otherwise_is_a_line_a_host() {
        let (before, after) = (of(&[("a", KEY), ("b", OTHER)]), of(&[("b", KEY), ("c", OTHER)]));
        let lines = ["add the key of c", "remove the key of a", "change the key of b"];
        assert_eq!(differences(&before, &after), lines);
        assert!(differences(&before, &before).is_empty());
    }
}
