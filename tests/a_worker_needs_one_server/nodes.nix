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
  settings.lease = "fast";
  vms.web.requires.zone = "d";
}
