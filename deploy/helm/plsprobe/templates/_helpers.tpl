{{- define "plsprobe.labels" -}}
app.kubernetes.io/name: plsprobe
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "plsprobe.selector" -}}
app.kubernetes.io/name: plsprobe
{{- end }}

{{- define "plsprobe.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* A health check over HTTP. On 127.0.0.1 the kubelet must be told so; else it takes the pod's address, the node's. */}}
{{- define "plsprobe.check" -}}
httpGet:
  path: {{ .path }}
  port: metrics
  {{- if not .values.metrics.scrape }}
  host: 127.0.0.1
  {{- end }}
{{- end }}
