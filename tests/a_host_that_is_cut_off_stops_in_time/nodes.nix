# `db` is on the host that will be cut off.
{ cluster }:
cluster {
  hosts = {
    alpha = { };
    beta = { };
    gamma.services.blixard.settings.node.labels.rack = "far";
  };
  settings.lease = "fast";
  vms = {
    db = {
      failover = "manual";
      requires.rack = "far";
    };
    web = { };
  };
}
