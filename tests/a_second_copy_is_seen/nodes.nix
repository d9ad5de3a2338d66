{ cluster }:
cluster {
  hosts = {
    alpha = { };
    beta = { };
  };
  servers = [ "alpha" ];
  vms.web = { };
}
