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
  };
  servers = [
    "alpha"
    "beta"
    "gamma"
  ];
  settings.lease = "fast";
  vms.web.replicas = 5;
}
