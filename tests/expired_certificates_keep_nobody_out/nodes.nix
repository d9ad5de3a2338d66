# delta has no cluster secret, so it can't sign: not even what it needs itself.
{ cluster }:
cluster {
  hosts = {
    alpha = { };
    beta = { };
    delta.services.blixard = {
      clusterSecretFile = null;
      settings.cluster.token_file = "/etc/blixard/token";
    };
    gamma = { };
  };
  servers = [
    "alpha"
    "beta"
    "gamma"
  ];
  vms.web.replicas = 3;
}
