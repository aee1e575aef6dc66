#!/usr/bin/env bash
# From nothing to an answer on kind: image, cluster, operator, the overlay single-node, one request. NEVER RUN.
# Needs docker, kind, kubectl, helm, openssl, a checkout of KubeRay 1.7.0 in $KUBERAY, and 16 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${KUBERAY:?a checkout of KubeRay 1.7.0, for the chart of its operator}"
cluster=moray-e2e
trap 'kind delete cluster --name "$cluster"' EXIT

docker build --tag moray:0.1.0 --build-arg EXTRAS= .
kind create cluster --name "$cluster" --wait 120s
kind load docker-image moray:0.1.0 --name "$cluster"
helm install kuberay "$KUBERAY/helm-chart/kuberay-operator" --namespace kuberay-system --create-namespace --wait
# The custom resources that prometheus-operator would bring are left out: kind has none.
kubectl create namespace moray
kubectl -n moray create secret generic moray-ray --from-literal=auth_token="$(openssl rand -hex 32)"
kubectl -n moray create secret generic moray-redis --from-literal=password="$(openssl rand -hex 32)"
kubectl kustomize k8s/overlays/single-node | .venv/bin/moray --family laptop render k8s --check -
kubectl kustomize k8s/overlays/single-node \
  | .venv/bin/python -c 'import sys, yaml; yaml.safe_dump_all(
      (each for each in yaml.safe_load_all(sys.stdin) if "monitoring.coreos.com" not in each["apiVersion"]), sys.stdout)' \
  | kubectl apply --server-side -f -
kubectl -n moray wait --for=condition=Ready rayservice/moray --timeout=900s

head=$(kubectl -n moray get pod -l app.kubernetes.io/component=head -o name)
key=$(kubectl -n moray exec "$head" -c ray-head -- moray --family /etc/moray/family.yaml keys create e2e --json \
  | .venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)[0]["key"])')
kubectl -n moray port-forward service/moray-serve-svc 8000:8000 &
forward=$!
trap 'kill "$forward"; kind delete cluster --name "$cluster"' EXIT
curl --fail --silent --retry 30 --retry-all-errors --retry-delay 2 http://127.0.0.1:8000/v1/chat/completions \
  -H "Authorization: Bearer $key" -H "Content-Type: application/json" \
  -d '{"model": "gpt-5.2-mini", "messages": [{"role": "user", "content": "What is a prime number?"}]}'
