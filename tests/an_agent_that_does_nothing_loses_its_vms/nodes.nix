{ cluster }:
cluster {
  hosts = {
    alpha = { };
    beta = { };
    gamma = { };
  };
  settings.lease = "fast";
  vms.web.replicas = 3;
}
