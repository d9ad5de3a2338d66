# So many hosts that two may be lost at once without a brake.
{ cluster }:
let
  worker.services.blixard.settings.node.role = "worker";
in
cluster {
  hosts = {
    alpha = { };
    beta = { };
    delta = worker;
    epsilon = worker;
    gamma = { };
    zeta = worker;
  };
  servers = [
    "alpha"
    "beta"
    "gamma"
  ];
  settings.lease = "fast";
  vms = {
    db.failover = "manual";
    web.replicas = 6;
  };
}
