# `web` runs on alpha, whose disk becomes full, and `db` doesn't. It is manual: it goes on without alpha's agent.
{ cluster }:
let
  disk = size: { services.blixard.settings.node.labels.disk = size; };
in
cluster {
  hosts = {
    alpha = disk "small";
    beta = disk "large";
    gamma = disk "large";
  };
  vms = {
    db.requires.disk = "large";
    web = {
      failover = "manual";
      requires.disk = "small";
    };
  };
}
