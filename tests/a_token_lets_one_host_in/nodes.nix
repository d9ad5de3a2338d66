# alpha is a cluster, and delta another one; beta and gamma have no cluster secret, and a token as soon as they are given one.
{ cluster }:
let
  joins.services.blixard = {
    clusterSecretFile = null;
    settings.cluster.token_file = "/etc/blixard/token";
  };
in
cluster {
  hosts = {
    alpha = { };
    beta = joins;
    delta.services.blixard.settings.cluster.servers = [ "delta@192.168.1.3:7420" ];
    gamma = joins;
  };
  servers = [ "alpha" ];
}
