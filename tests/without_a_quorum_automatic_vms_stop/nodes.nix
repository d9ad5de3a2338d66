{ cluster }:
cluster {
  hosts = {
    alpha = { };
    beta = { };
    gamma = { };
  };
  settings.lease = "fast";
  vms = {
    db.failover = "manual";
    web.replicas = 3;
  };
}
