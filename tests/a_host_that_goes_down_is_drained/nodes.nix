{ cluster }:
cluster {
  hosts = {
    alpha = { };
    beta = { };
    gamma = { };
  };
  vms.web.replicas = 2;
}
