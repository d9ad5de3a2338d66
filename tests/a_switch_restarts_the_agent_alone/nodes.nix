{ cluster }:
cluster {
  hosts = {
    alpha.services.blixard.settings.node.labels.rack = "1";
    beta = { };
    gamma = { };
  };
  vms = {
    db = {
      failover = "manual";
      requires.rack = "1";
    };
    web.requires.rack = "1";
  };
}
