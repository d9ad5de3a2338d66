# delta is listed nowhere: it becomes a worker.
{ cluster }:
cluster {
  hosts = {
    alpha = { };
    beta = { };
    delta.services.blixard.settings.node.labels.zone = "d";
    gamma = { };
  };
  servers = [
    "alpha"
    "beta"
    "gamma"
  ];
  settings.replaceServersAfterSeconds = 10;
  vms.web = {
    replicas = 2;
    requires.zone = "d";
  };
}
