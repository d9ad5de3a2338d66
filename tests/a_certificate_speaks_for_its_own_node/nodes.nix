# alpha is a cluster with beta, which is a worker, and delta is another one.
{ cluster }:
cluster {
  hosts = {
    alpha = { };
    beta.services.blixard.settings.node.role = "worker";
    delta.services.blixard.settings.cluster.servers = [ "delta@192.168.1.3:7420" ];
  };
  servers = [ "alpha" ];
}
